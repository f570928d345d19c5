#!/usr/bin/env python3
"""prepare.py - documents to token shards that the trainer reads, in parallel, resumable.

    text, JSONL, parquet, Hugging Face folders -> units of 16 MB, a process each: document -> tokens <eot>
      -> DIR/.prepare/unit_000000_train.tok ... -> when all are there DIR/train_000000.bin ... val_000000.bin ...
      -> DIR/dataset.json, last of all; tokenizer.json beside it

Split   a document is of validation where the hash of its text is below --val-fraction: wherever it stands, and
        however often.
Order   that of the arguments, folders by name; the same bytes on any number of processes, and after any number of
        kills: the same command goes on, since a unit counts when its record is renamed into place.
Masks   --prompt-field, --completion-field: prompt, completion, <eot> are a document, and only completion and <eot>
        count as targets (NAME_mask.bin).
Room    on disk twice the tokens while it runs; in memory one document and one unit a process.

Packages: none for --tokenizer bytes with text and JSONL; tokenizers (tokenizer.json), tiktoken (gpt2), pyarrow
(parquet), datasets (folders of save_to_disk, named sets). The files: shards.py.
"""

import array
import concurrent.futures
import fcntl
import hashlib
import importlib
import json
import mmap
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from concurrent.futures.process import BrokenProcessPool

import shards
from shards import stop

# name: repository and configuration; downloaded by `datasets`
NAMED = {
    "tinystories": ("roneneldan/TinyStories", None),
    "fineweb-edu": ("HuggingFaceFW/fineweb-edu", "sample-10BT"),
    "pg19": ("emozilla/pg19", None),
}
ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>")  # names of <eot>, the likeliest first
CARRIED = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt")
BLOCK = 1 << 20  # tokens copied at a time


class Refused(Exception):
    """What is wrong with an input; a worker raises it, the program ends with it in one line."""


def package(name):
    try:
        return importlib.import_module(name)
    except ImportError:
        name = name.partition(".")[0]
        raise Refused(f"this needs the Python package {name}: pip install {name}") from None


# ---- tokenizers -----------------------------------------------------------------------------------------------------


class Bytes:
    """A token a byte; 0, which text does not hold, ends a document."""

    kind = name = "bytes"
    vocab, folder = 256, None

    def __init__(self, args):
        self.eot = whole_eot(args.eot, "0")

    def encode(self, text, where):
        if self.eot is not None and self.eot in text:
            raise Refused(f"{where}: byte {self.eot} ends documents, and this one holds it; clean it, or --eot none")
        raw = bytearray(2 * len(text))
        raw[sys.byteorder == "big" :: 2] = text
        tokens = array.array("H")
        tokens.frombytes(raw)
        return tokens


class HuggingFace:
    """Any tokenizer.json, by the package tokenizers."""

    kind = "tokenizer.json"

    def __init__(self, args):
        path = args.tokenizer
        path = os.path.join(path, "tokenizer.json") if os.path.isdir(path) else path
        if not os.path.isfile(path):
            raise Refused(f"--tokenizer {args.tokenizer}: neither bytes, gpt2 nor a tokenizer.json or its folder")
        tokenizers = package("tokenizers")
        try:
            self.it = tokenizers.Tokenizer.from_file(path)
        except Exception as error:  # the package raises its bare Exception
            raise Refused(f"--tokenizer {path}: {str(error).splitlines()[0]}") from None
        self.it.no_truncation()
        self.it.no_padding()
        if not args.parse_special:
            if not hasattr(self.it, "encode_special_tokens"):
                raise Refused("tokenizers is too old to take special tokens for text: pip install -U tokenizers")
            self.it.encode_special_tokens = True
        self.folder = os.path.dirname(path) or "."
        self.name = os.path.basename(os.path.abspath(self.folder))
        ids = self.it.get_vocab(with_added_tokens=True)
        self.vocab = max(ids.values()) + 1
        self.code = "H" if self.vocab <= 65536 else "I"
        self.eot = self.find_eot(args.eot, ids)

    def find_eot(self, given, ids):
        if given in ids:
            return ids[given]
        if given is not None:
            return whole_eot(given, None)
        names = list(ENDS)
        try:
            with open(os.path.join(self.folder, "tokenizer_config.json"), encoding="utf-8") as file:
                named = json.load(file).get("eos_token")
            names.insert(0, named.get("content") if isinstance(named, dict) else named)
        except (OSError, ValueError, AttributeError):
            pass
        for name in names:
            if name in ids:
                return ids[name]
        raise Refused("this tokenizer has no end-of-text token of a known name; --eot TOKEN, --eot ID or --eot none")

    def encode(self, text, where):
        return array.array(self.code, self.it.encode(text, add_special_tokens=False).ids)


class Gpt2:
    """GPT-2's own, by the package tiktoken, which downloads its table once."""

    kind, name, folder = "tiktoken", "gpt2", None

    def __init__(self, args):
        tiktoken = package("tiktoken")
        try:
            self.it = tiktoken.get_encoding("gpt2")
        except Exception as error:  # whatever its download raises
            raise Refused(f"--tokenizer gpt2: tiktoken cannot load its table: {str(error).splitlines()[0]}") from None
        self.vocab = self.it.n_vocab
        self.eot = whole_eot(args.eot, str(self.it.eot_token))
        self.special = "all" if args.parse_special else set()

    def encode(self, text, where):
        return array.array("H", self.it.encode(text, allowed_special=self.special, disallowed_special=()))


def whole_eot(given, usual):
    given = usual if given is None else given
    if given == "none":
        return None
    if not given.isdigit():
        raise Refused(f"--eot {given}: no token of this tokenizer; a token, its number, or none")
    return int(given)


def make_tokenizer(args):
    made = {"bytes": Bytes, "gpt2": Gpt2}.get(args.tokenizer, HuggingFace)(args)
    if made.eot is not None and made.eot >= made.vocab:
        raise Refused(f"--eot {made.eot}: no token of this tokenizer; its vocabulary is 0 to {made.vocab - 1}")
    return made


# ---- inputs: pieces [kind, path, begin, end, bytes], in order -----------------------------------------------------


def cut_file(path, separator, size):
    """[begin, end) of runs of whole records, which end in `separator`, of `size` bytes or more."""
    total = os.path.getsize(path)
    if total == 0:
        return
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        begin = at = 0
        while at >= 0:
            # one byte cannot overlap itself: no need to look at each
            at = text.find(separator, max(at, begin + size - 1) if len(separator) == 1 else at)
            at = at + len(separator) if at >= 0 else -1
            if at - begin >= size:
                yield begin, at
                begin = at
        if begin < total:
            yield begin, total


def open_parquet(path):
    parquet = package("pyarrow.parquet")
    try:
        return parquet.ParquetFile(path)
    except Exception as error:  # pyarrow has many
        raise Refused(f"{path}: {str(error).splitlines()[0]}") from None


def pieces_of_file(path, args):
    size = args.unit_bytes
    if path.endswith((".jsonl", ".ndjson", ".json")):
        for begin, end in cut_file(path, b"\n", size):
            yield ["jsonl", path, begin, end, end - begin]
    elif path.endswith(".parquet"):
        meta = open_parquet(path).metadata
        for i in range(meta.num_row_groups):
            yield ["parquet", path, i, i + 1, meta.row_group(i).total_byte_size]
    elif args.separator:
        for begin, end in cut_file(path, args.separator, size):
            yield ["text", path, begin, end, end - begin]
    else:
        yield ["text", path, 0, os.path.getsize(path), os.path.getsize(path)]


def pieces_of_rows(path, args):
    rows = open_rows(path, args.split)
    total = max(1, rows.data.nbytes)
    step = max(1, len(rows) * args.unit_bytes // total)
    for begin in range(0, len(rows), step):
        end = min(len(rows), begin + step)
        yield ["rows", path, begin, end, max(1, total * (end - begin) // len(rows))]


def pieces_of(path, args):
    if path in NAMED and not os.path.exists(path):
        yield from pieces_of_rows(path, args)
    elif os.path.isdir(path) and {"dataset_dict.json", "state.json"} & set(os.listdir(path)):
        yield from pieces_of_rows(path, args)
    elif os.path.isdir(path):
        found = []
        for folder, folders, files in os.walk(path):
            folders[:] = [name for name in folders if not name.startswith(".")]
            names = (name for name in files if name.endswith((".txt", ".jsonl", ".ndjson", ".parquet")))
            found += [os.path.join(folder, name) for name in names if not name.startswith(".")]
        if not found:
            raise Refused(f"{path}: no .txt, .jsonl or .parquet file below it, and not a folder of save_to_disk")
        for name in sorted(found):
            yield from pieces_of_file(name, args)
    elif os.path.isfile(path):
        yield from pieces_of_file(path, args)
    else:
        raise Refused(f"{path}: no such file or folder; named sets: {', '.join(NAMED)}")


def make_units(args):
    """Lists of neighbouring pieces, each of --unit-bytes or one piece."""
    units, filled = [[]], 0
    for path in args.inputs:
        for piece in pieces_of(path, args):
            if units[-1] and filled + piece[4] > args.unit_bytes:
                units.append([])
                filled = 0
            units[-1].append(piece)
            filled += piece[4]
    return units


def open_rows(path, split, cache={}):
    if (path, split) not in cache:
        datasets = package("datasets")
        datasets.disable_progress_bars()
        try:
            if path in NAMED and not os.path.exists(path):
                name, configuration = NAMED[path]
                rows = datasets.load_dataset(name, configuration, split=split)
            else:
                rows = datasets.load_from_disk(path)
                if isinstance(rows, datasets.DatasetDict):
                    if split not in rows:
                        raise Refused(f"{path}: no split '{split}'; --split {' or '.join(rows)}")
                    rows = rows[split]
        except Refused:
            raise
        except Exception as error:  # of the network, of the hub, of arrow
            raise Refused(f"{path}: {(str(error) or type(error).__name__).splitlines()[0]}") from None
        cache[path, split] = rows
    return cache[path, split]


# ---- a unit's documents: (where, prompt, completion), prompt None where all of it counts; text is bytes ------------


def field_names(args):
    return [args.prompt_field, args.completion_field] if args.prompt_field else [args.field]


def check_fields(where, args, known):
    flag = "--prompt-field and --completion-field" if args.prompt_field else "--field"
    for name in field_names(args):
        if name not in known:
            raise Refused(f"{where}: no field '{name}'; {flag}: one of {', '.join(known)}")


def fields_of(row, where, args):
    check_fields(where, args, row)
    texts = []
    for name in field_names(args):
        if not isinstance(row[name], str):
            raise Refused(f"{where}: field '{name}' is no text")
        texts.append(row[name].encode("utf-8", "surrogatepass"))
    return (where, *texts) if args.prompt_field else (where, None, texts[0])


def documents(piece, args):
    kind, path, begin, end, _ = piece
    if kind in ("text", "jsonl"):
        with open(path, "rb") as file:
            file.seek(begin)
            data = file.read(end - begin)
        if kind == "text":
            texts = data.split(args.separator) if args.separator else [data]
            for text in texts:
                yield path, None, text.strip(b"\r\n") if args.separator else text
            return
        at = begin
        for line in data.split(b"\n"):
            where = f"{path}, byte {at}"
            at += len(line) + 1
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise Refused(f"{where}: the line is not JSON: {error}") from None
            if not isinstance(row, dict):
                raise Refused(f"{where}: the line is not a JSON object")
            yield fields_of(row, where, args)
        return
    if kind == "parquet":
        where = f"{path}, row group {begin}, row "
        file = open_parquet(path)
        check_fields(path, args, file.schema_arrow.names)
        try:
            rows = file.read_row_group(begin, columns=field_names(args)).to_pylist()
        except Exception as error:  # pyarrow has many
            raise Refused(f"{path}: {str(error).splitlines()[0]}") from None
        first = 0
    else:
        where, first = f"{path}, row ", begin
        table = open_rows(path, args.split)
        check_fields(path, args, table.column_names)
        columns = table.select_columns(field_names(args))[begin:end]
        rows = [dict(zip(columns, values)) for values in zip(*columns.values())]
    for i, row in enumerate(rows, first):
        yield fields_of(row, f"{where}{i}", args)


def falls_into_validation(text, fraction):
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") < fraction * 2.0**64


# ---- work of a process ----------------------------------------------------------------------------------------------

worker = {}


def end_with(parent):
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)


def worker_begin(args, width, parent):
    """`parent`: process that this one shall not outlive, whatever ends it; None: this is it."""
    if parent is not None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        threading.Thread(target=end_with, args=(parent,), daemon=True).start()
    worker.update(args=args, width=width, tokenizer=make_tokenizer(args), code=shards.CODES[width])


def record_path(args, name):
    return os.path.join(args.out, ".prepare", name)


def write_record(args, name, key, record):
    """That a piece of work is done: `key` stands for all that it was made from."""
    shards.write_atomically(record_path(args, name + ".json"), [json.dumps([key, record]).encode()])
    return record


def read_record(args, name, key):
    try:
        with open(record_path(args, name + ".json"), encoding="utf-8") as file:
            was, record = json.load(file)
    except FileNotFoundError:
        return None
    return record if was == key else None


def tokens_of(text, where):
    tokenizer = worker["tokenizer"]
    if tokenizer.kind != "bytes":
        try:
            text = text.decode()
        except UnicodeDecodeError as error:
            where = f"{where}: not UTF-8 ({error.reason} at byte {error.start} of the document)"
            raise Refused(f"{where}; --tokenizer bytes takes any") from None
    tokens = tokenizer.encode(text, where)
    return tokens if tokens.typecode == worker["code"] else array.array(worker["code"], tokens)


def encode_unit(name, key, unit):
    """Tokens of a unit's documents, a file a split, and their record."""
    args, eot = worker["args"], worker["tokenizer"].eot
    found = {s: {"tokens": 0, "documents": 0, "text_bytes": 0} for s in ("train", "val")}
    out = {s: array.array(worker["code"]) for s in found}
    masks = {s: bytearray() for s in found}
    for piece in unit:
        for where, prompt, text in documents(piece, args):
            if not text:
                continue
            whole = text if prompt is None else prompt + b"\0" + text
            split = "val" if falls_into_validation(whole, args.val_fraction) else "train"
            before = tokens_of(prompt, where) if prompt else ()
            after = tokens_of(text, where)
            if eot is not None:
                after.append(eot)
            out[split].extend(before)
            out[split].extend(after)
            if args.prompt_field:
                masks[split] += bytes(len(before)) + b"\1" * len(after)
            found[split]["tokens"] += len(before) + len(after)
            found[split]["documents"] += 1
            found[split]["text_bytes"] += len(text) + len(prompt or b"")
    for split in found:
        shards.write_atomically(record_path(args, f"{name}_{split}.tok"), [shards.little(out[split])])
        if args.prompt_field:
            shards.write_atomically(record_path(args, f"{name}_{split}.mask"), [masks[split]])
    return write_record(args, name, key, found)


def token_range(args, split, ending, width, counts, begin, end):
    """Tokens [begin, end) of all units of a split in their order, as arrays."""
    first = 0
    for index, count in enumerate(counts):
        low, high = max(begin, first), min(end, first + count)
        if low < high:
            with open(record_path(args, f"unit_{index:06d}_{split}.{ending}"), "rb") as file:
                file.seek((low - first) * width)
                while low < high:
                    block = array.array(shards.CODES[width])
                    data = file.read(min(BLOCK, high - low) * width)
                    if not data:
                        raise Refused(f"{file.name} is shorter than its record says; remove it and its .json")
                    block.frombytes(data)
                    if sys.byteorder == "big":
                        block.byteswap()
                    low += len(block)
                    yield block
        first += count


def assemble_shard(name, key, split, counts, begin, end):
    """A shard, and its mask, out of the units' tokens; what dataset.json says of it."""
    args, width = worker["args"], worker["width"]
    path = os.path.join(args.out, name + ".bin")
    tokens = token_range(args, split, "tok", width, counts, begin, end)
    record = shards.write_shard(path, width, end - begin, tokens, worker["tokenizer"].eot)
    if args.prompt_field:
        mask = token_range(args, split, "mask", 1, counts, begin, end)
        found = shards.write_shard(shards.mask_path(path), 1, end - begin, mask, 1)
        record.update(counted=found["documents"], mask_sum=found["sum"])
    return write_record(args, name, key, record)


# ---- the whole -----------------------------------------------------------------------------------------------------


class Progress:
    """A bar on a terminal, in a log a line every tenth."""

    def __init__(self, what, total):
        self.what, self.total, self.done, self.begin, self.said = what, max(1, total), 0, time.monotonic(), 0
        self.fresh = 0  # done by this process; the rest was there

    def add(self, amount, fresh=True):
        self.done += amount
        self.fresh += amount if fresh else 0
        part = min(1.0, self.done / self.total)
        seconds = time.monotonic() - self.begin
        left = int(seconds * (self.total - self.done) / self.fresh) if self.fresh else 0
        text = f"{self.what:9s} {100 * part:5.1f}%  {left // 3600}:{left // 60 % 60:02d}:{left % 60:02d} to go"
        if sys.stdout.isatty():
            bar = "#" * int(30 * part)
            print(f"\r{text} [{bar:30s}]", end="\n" if self.done >= self.total else "", flush=True)
        elif int(10 * part) > self.said:
            self.said = int(10 * part)
            print(text, flush=True)


def run_jobs(pool, args, what, jobs):
    """jobs: (name, key, weight, function, arguments). Their records; those that are there are not made again."""
    records = {name: read_record(args, name, key) for name, key, *_ in jobs}
    progress = Progress(what, sum(weight for _, _, weight, *_ in jobs))
    waiting = {}
    for name, key, weight, function, given in jobs:
        if records[name] is not None:
            progress.add(weight, fresh=False)
        elif pool is None:
            records[name] = function(name, key, *given)
            progress.add(weight)
        else:
            waiting[pool.submit(function, name, key, *given)] = (name, weight)
    for future in concurrent.futures.as_completed(waiting):
        name, weight = waiting[future]
        records[name] = future.result()
        progress.add(weight)
    return [records[name] for name, *_ in jobs]


def key_of(*parts):
    """A name for all that a piece of work depends on."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def options_key(args):
    """What the tokens depend on, but for the inputs themselves."""
    what = {name: value for name, value in vars(args).items() if name not in ("out", "processes")}
    what["separator"] = args.separator.decode("latin-1") if args.separator else None
    return key_of(what, [stamp(path) for path in (args.tokenizer, os.path.join(args.tokenizer, "tokenizer.json"))])


def stamp(path):
    return [os.path.getsize(path), os.stat(path).st_mtime_ns] if os.path.isfile(path) else None


def begin_or_go_on(args, key):
    """The folder of the work under way, held by this process alone; the lock lasts as long as it does."""
    hidden = os.path.join(args.out, ".prepare")
    if not os.path.isdir(hidden):
        if os.path.exists(os.path.join(args.out, "dataset.json")):
            stop(f"{args.out} already holds a data set (dataset.json); choose another --out")
        os.makedirs(args.out, exist_ok=True)
        shards.refuse_others(args.out, ())
        os.makedirs(hidden)
    lock = open(os.path.join(hidden, "lock"), "w", encoding="utf-8")
    patience = 100  # tenths of a second: processes of a run that was ended hold the lock until they notice
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError:
            patience -= 1
            if patience < 0:
                stop(f"another prepare.py is at work in {args.out}")
            time.sleep(0.1)
    if not os.path.exists(record_path(args, "plan.json")):
        write_record(args, "plan", key, {})
    elif read_record(args, "plan", key) is None:
        stop(f"{args.out} holds another preparation that is not done: give its command, or remove {hidden}")
    return lock


def tokenizer_record(args, tokenizer):
    """What dataset.json says of the tokenizer, whose files are put beside the shards."""
    record = {"kind": tokenizer.kind, "name": tokenizer.name}
    for name in CARRIED if tokenizer.folder else ():
        path = os.path.join(tokenizer.folder, name)
        if name == "tokenizer.json" and not os.path.exists(path):
            path = args.tokenizer
        if os.path.exists(path):
            with open(path, "rb") as file:
                data = file.read()
            shards.write_atomically(os.path.join(args.out, name), [data])
            if name == "tokenizer.json":
                record["sha256"] = hashlib.sha256(data).hexdigest()
    return record


def prepare(args):
    tokenizer = make_tokenizer(args)
    units = make_units(args)
    width = 4 if args.uint32 or tokenizer.vocab > 65536 else 2
    options = options_key(args)
    lock = begin_or_go_on(args, options)
    pool = None
    processes = min(args.processes, len(units))
    if processes > 1:
        context = multiprocessing.get_context("fork")
        given = (args, width, os.getpid())
        pool = concurrent.futures.ProcessPoolExecutor(processes, context, worker_begin, given)
    else:
        worker_begin(args, width, None)
    keys = [key_of(options, unit, [stamp(piece[1]) for piece in unit]) for unit in units]
    jobs = [(f"unit_{i:06d}", keys[i], sum(p[4] for p in unit), encode_unit, (unit,)) for i, unit in enumerate(units)]
    found = run_jobs(pool, args, "tokens", jobs)
    splits, jobs, names = {}, [], {}
    for split in ("train", "val"):
        total = {what: sum(unit[split][what] for unit in found) for what in ("tokens", "documents", "text_bytes")}
        if not total["tokens"]:
            if split == "train":
                raise Refused("no text for training: every document is empty or of validation")
            if args.val_fraction > 0:
                print(f"note     no document fell into validation (--val-fraction {args.val_fraction})", flush=True)
            continue
        counts = [unit[split]["tokens"] for unit in found]
        cuts = shards.even_parts(total["tokens"], args.shard_tokens)
        names[split] = [shards.shard_name(split, i) for i in range(len(cuts))]
        jobs += [
            (f"{split}_{i:06d}", key_of(keys), end - begin, assemble_shard, (split, counts, begin, end))
            for i, (begin, end) in enumerate(cuts)
        ]
        splits[split] = dict(total, files={})
    made = iter(run_jobs(pool, args, "shards", jobs))
    for split in splits:
        splits[split]["files"] = {name: next(made) for name in names[split]}
    if pool:
        pool.shutdown()
    record = tokenizer_record(args, tokenizer)
    shards.write_dataset(args.out, record, tokenizer.vocab, tokenizer.eot, width, splits)
    shutil.rmtree(os.path.join(args.out, ".prepare"))
    lock.close()
    for split, what in splits.items():
        shards.print_split(split, what["tokens"], names[split], args.out)


def parse_arguments():
    parser = shards.argument_parser(
        __doc__, ("inputs", "INPUT"), "files (.jsonl, .parquet, else text), folders, or a name: " + ", ".join(NAMED),
        "share of the documents", "4 bytes a token even where 2 are enough")
    add = parser.add_argument
    add("--tokenizer", default="bytes", metavar="T", help="bytes, gpt2, or a tokenizer.json or its folder [bytes]")
    add("--eot", metavar="T", help="token that ends a document, or its number, or none [the tokenizer's; bytes: 0]")
    add("--parse-special", action="store_true", help="take special tokens that a text spells for tokens, not for text")
    add("--field", default="text", metavar="F", help="field of JSONL, parquet and rows that holds the text [text]")
    add("--prompt-field", metavar="F", help="field of a prompt, whose tokens do not count as targets")
    add("--completion-field", metavar="F", help="field of what follows the prompt, and counts")
    add("--separator", metavar="S", help="between documents of a text file, with the line ends around it [none]")
    add("--split", default="train", metavar="S", help="split of a Hugging Face folder [train]")
    add("--processes", type=int, default=0, metavar="N", help="processes at work [cores]")
    add("--unit-bytes", type=int, default=1 << 24, metavar="N", help="input that a process takes at once [16 MB]")
    args = shards.parse_arguments(parser)
    if args.unit_bytes < 1:
        stop(f"--unit-bytes {args.unit_bytes}: must be 1 or more")
    if bool(args.prompt_field) != bool(args.completion_field):
        stop("--prompt-field and --completion-field go together")
    args.processes = args.processes if args.processes > 0 else len(os.sched_getaffinity(0))
    args.separator = args.separator.encode() if args.separator else None
    return args


def main():
    args = parse_arguments()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are enough
    try:
        prepare(args)
    except Refused as error:
        say_and_end(f"prepare: error: {error}", 1)
    except BrokenProcessPool:
        say_and_end("prepare: error: a process was killed, perhaps out of memory; it goes on with fewer --processes", 1)
    except SystemExit as error:
        say_and_end(error.code, 1)
    except OSError as error:
        say_and_end(f"prepare: error: {error.filename or 'a file'}: {error.strerror}", 1)
    except KeyboardInterrupt:
        say_and_end("prepare: stopped; the same command goes on", 130)


def say_and_end(text, code):
    """At once: processes that are at work end with this one."""
    print(text, file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
