#!/usr/bin/env python3
"""check_docs.py [--update] [PAGE...] - README.md, CONTRIBUTING.md and docs/ say what is so. TAP, a check a line.

Every fenced block has a language. What is in one:
  sh       commands; all blocks of a page run in their order, in a fresh folder that looks like this repository
  console  "$ COMMAND" and what it prints, which is compared; a line `...` stands for any lines; where "error:" is
           printed, the command must fail
  c, diff  lines that stand in a source (of a diff: those that it leaves), but for `...`
  others   no commands
An HTML comment on the line before a block says otherwise:
  <!-- not run: REASON -->     REASON is one of REASONS. What it names must exist all the same, and a ./train_gpt in
                               it must pass a dry run.
  <!-- output varies -->       it runs, its output is not compared
and anywhere in a page
  <!-- not ours: --flag ... -->  flags of other programs: every other --flag must be one of ours

Links lead somewhere, heading included; files that are named exist; papers are those that sources name; docs/flags.md is
what --help prints; the pictures are what draw.py draws; README.md has at most 8192 bytes. --update writes the flags
page and the outputs that have changed, instead of complaining. Needs train_gpt_cpu, train_gpt_sim and train_gpt_emu;
Python 3.9 and nothing else.
"""
import filecmp
import glob
import os
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = os.path.realpath(os.path.join(os.path.dirname(__file__), "..", ".."))
README_LIMIT = 8192
PROGRAMS = ("train_gpt_cpu", "train_gpt_sim", "train_gpt_emu")
REASONS = re.compile(r"needs (GPUs|a cluster|the Internet|torch|Slurm|root|your data)|takes (minutes|hours)|run by \S+")
FLAGS_PAGE = "docs/flags.md"
FOLDERS = r"(?:core|kernels|dev|scripts|sim|docs|\.ci)"
COPIED = r"Makefile|LICENSE|.*\.(?:h|cu|md|cff)"
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9]*(?:-[a-z0-9]+)*")

checks, failures = 0, 0


def ok(good, what, why=()):
    global checks, failures
    checks += 1
    failures += not good
    print(f"{'ok' if good else 'not ok'} {checks} - {what}")
    for line in list(why)[:14] if not good else ():
        print(f"# {line}")
    sys.stdout.flush()


def read(path):
    with open(path, encoding="utf-8") as file:
        return file.read()


def write(path, text):
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)


# ---- pages -----------------------------------------------------------------------------------------------------------


class Block:
    def __init__(self, line, language, comment):
        self.line, self.language, self.comment, self.lines = line, language, comment, []
        found = re.match(r"<!-- not run: (.*) -->$", comment)
        self.not_run = found.group(1) if found else None
        self.varies = comment == "<!-- output varies -->"

    def commands(self):
        """(first line, last line + 1, text) of each command; a backslash, a pipe, a here-document, a loop go on."""
        found, i, prompt = [], 0, "$ " if self.language == "console" else ""
        while i < len(self.lines):
            first, line = i, self.lines[i]
            i += 1
            if not line.startswith(prompt) or not line.strip():
                continue
            text, here = line[len(prompt):], re.search(r"<<'?(\w+)'?", line)
            while i < len(self.lines) and (text.endswith(("\\", "|")) or
                                           (here and self.lines[i - 1] != here.group(1)) or
                                           (text.startswith("for ") and self.lines[i - 1] != "done")):
                text += "\n" + self.lines[i]
                i += 1
            found.append((first, i, text))
        return found


class Page:
    def __init__(self, path):
        self.path, self.text = path, read(os.path.join(ROOT, path))
        self.blocks, self.prose, block, previous = [], [], None, ""
        for number, line in enumerate(self.text.split("\n"), 1):
            fence = re.match(r"```(\w*)$", line)
            if block is not None and line == "```":
                block = None
            elif block is not None:
                block.lines.append(line)
            elif fence:
                block = Block(number, fence.group(1), previous)
                self.blocks.append(block)
            else:
                self.prose.append(line)
            previous = line
        self.open_fence = block is not None

    def headings(self):
        slugs = {}
        for line in self.prose:
            found = re.match(r"#+ (.*)", line)
            if found:  # as GitHub makes them
                words = re.sub(r"[^\w\- ]", "", re.sub(r"[`*]", "", found.group(1)).lower()).replace(" ", "-")
                slugs[words + (f"-{slugs[words]}" if words in slugs else "")] = slugs.get(words, 0) + 1
        return slugs


def dead_links(page, pages):
    for target in re.findall(r"\]\(([^)\s]+)\)|(?:src|srcset|href)=\"([^\"]+)\"", "\n".join(page.prose)):
        target = target[0] or target[1]
        if re.match(r"https?://|mailto:", target):
            continue
        file, _, anchor = target.partition("#")
        path = os.path.normpath(os.path.join(os.path.dirname(page.path), file)) if file else page.path
        if not os.path.exists(os.path.join(ROOT, path)):
            yield f"{target}: no such file"
        elif anchor and path in pages and anchor not in pages[path].headings():
            yield f"{target}: no such heading in {path}"


def undescribed(helps, pages):
    """Schemes of --help without a row in README.md, a page, or a place in the picture."""
    listed = helps["train_gpt_cpu"].partition("\nSchemes of --sp\n")[2].partition("\n\n")[0]
    for scheme in re.findall(r"^  (\w+) ", listed, flags=re.M):
        if f"| `{scheme}` |" not in pages["README.md"].text or f"docs/schemes/{scheme}.md" not in pages or \
                f">{scheme}</text>" not in read("docs/pictures/schemes.svg"):
            yield scheme


def unlisted(pages):
    """Pages that docs/README.md does not list."""
    listed = re.findall(r"\]\(([^)\s#]+)", pages["docs/README.md"].text)
    paths = {os.path.normpath(os.path.join("docs", target)) for target in listed}
    return sorted(path for path in pages if path not in paths | {"docs/README.md"})


def named(page):
    """Code of a page: inline spans and blocks."""
    prose = re.sub(r"<!--.*?-->", "", "\n".join(page.prose), flags=re.S)
    return re.findall(r"`([^`\n]+)`", prose) + [line for block in page.blocks for line in block.lines]


def missing_files(page):
    if page.path == FLAGS_PAGE:
        return
    for code in named(page):
        for path in re.findall(r"(?<![\w/.-])(%s/[\w./*-]+|[\w-]+\.(?:h|cu|sbatch))(?![\w/*])" % FOLDERS, code):
            path = path.rstrip(".")
            inside = [path] if "/" in path else [path, f"*/{path}", f"*/*/{path}"]
            if not any(glob.glob(os.path.join(ROOT, one)) for one in inside):
                yield path
    for target in re.findall(r"\bmake ((?:[a-z]\w*/)?[a-z][\w-]*)", "\n".join(named(page))):
        yield from () if make_knows(target) else [f"make {target}"]


def make_knows(target):
    return subprocess.run(["make", "-s", "-n", "-C", ROOT, target], capture_output=True).returncode == 0


def foreign_flags(page, ours):
    declared = {flag for line in re.findall(r"<!-- not ours: (.*?) -->", page.text, flags=re.S)
                for flag in FLAG.findall(line)}
    used = set(FLAG.findall(re.sub(r"<!--.*?-->", "", page.text, flags=re.S)))
    for flag in sorted(used - ours - declared):
        yield f"{flag}: neither --help nor a script knows it"
    for flag in sorted(declared - used):
        yield f"{flag}: declared as not ours, and not there"


def sources():
    return [read(path) for pattern in ("*.h", "*.cu", "core/*.h", "kernels/*.h", "kernels/*/*.*h")
            for path in glob.glob(os.path.join(ROOT, pattern))]


def unknown_papers(text):
    """Papers that no source names: a wrong digit, most likely."""
    known = {paper for source in sources() for paper in re.findall(r"arXiv:(\d{4}\.\d{5})", source)}
    return set(re.findall(r"\b\d{4}\.\d{5}\b", text)) - known


def old_code(page, code):
    """Lines of C that no source has any more."""
    for block in page.blocks:
        for line in block.lines if block.language in ("c", "diff") else ():
            if block.language == "diff" and line[:1] in "-@":
                continue
            bare = (line[1:] if block.language == "diff" and line != "..." else line).strip()
            if bare and bare != "..." and bare not in code:
                yield f"line {block.line}: {bare}"


def our_flags(helps):
    texts = list(helps.values())
    for pattern in ("Makefile", "scripts/*", "dev/*.sh", "dev/[!t]*/*.sh", "dev/[!t]*/*.py"):
        texts += [read(path) for path in glob.glob(os.path.join(ROOT, pattern))]  # tests name wrong ones on purpose
    return {flag for text in texts for flag in FLAG.findall(text)}


# ---- the flags page --------------------------------------------------------------------------------------------------

FLAGS_HEAD = """# Flags

<!-- generated: `make docs` writes this page from --help -->

`--help` of each program prints its flags; this page is made from it. A value in brackets is the default. An unknown
flag, a value out of range and a combination that cannot run stop the program with one line that says why; nothing that
is asked for is silently changed.

## train_gpt_cpu

```text
%s```

## Where the CUDA program differs

`train_gpt`, and `train_gpt_emu`, the same program under the emulator:

```text
%s```

## Where the simulator differs

Flags of data and learning have no effect there; those of output and checkpoints are refused.

```text
%s```
"""


def flags_page(helps):
    base = set(helps["train_gpt_cpu"].splitlines())

    def differs(program):
        flags = helps[program][helps[program].index("\nModel\n"):].splitlines()
        return "".join(line + "\n" for line in flags if line and line not in base)

    return FLAGS_HEAD % (helps["train_gpt_cpu"], differs("train_gpt_emu"), differs("train_gpt_sim"))


# ---- running ---------------------------------------------------------------------------------------------------------

MPIRUN = """#!/usr/bin/env bash
# mpirun as a page writes it, started as this machine needs it
back=$PWD
source "{root}/scripts/common.sh" && cd "$back" || exit 1
PATH=${{PATH#*:}} ranks=1
while [[ $# -gt 0 ]]; do
    case $1 in
    -np | -n) ranks=$2 && shift 2 ;;
    --bind-to) shift 2 ;;
    -*) shift ;;
    *) break ;;
    esac
done
run_ranks "$ranks" "$@"
"""
MAKE = """#!/bin/sh
# the tests have built what there is to build: does make know the target?
PATH=${{PATH#*:}} exec make -n -C "{root}" "$@" >/dev/null
"""


def fresh_folder(work):
    """A copy of the repository for a page's commands, programs as links."""
    folder = tempfile.mkdtemp(dir=work)
    for name in os.listdir(ROOT):
        here, there = os.path.join(ROOT, name), os.path.join(folder, name)
        if name.startswith("train_gpt_"):
            os.symlink(here, there)
        elif re.fullmatch(FOLDERS, name):  # and not what somebody who followed a page has left here
            shutil.copytree(here, there, ignore=shutil.ignore_patterns("__pycache__", "fixtures"))
        elif re.fullmatch(COPIED, name):
            shutil.copy(here, there)
    return folder


def tools(work):
    os.mkdir(os.path.join(work, "bin"))
    for name, text in (("mpirun", MPIRUN), ("make", MAKE)):
        write(os.path.join(work, "bin", name), text.format(root=ROOT))
        os.chmod(os.path.join(work, "bin", name), 0o755)
    return dict(os.environ, PATH=os.path.join(work, "bin") + ":" + os.environ["PATH"], LC_ALL="C")


def run(command, folder, environment):
    try:
        done = subprocess.run(["bash", "-euo", "pipefail", "-c", command], cwd=folder, env=environment, timeout=600,
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    except subprocess.TimeoutExpired:
        return 124, ["more than ten minutes"]
    return done.returncode, [line.rstrip() for line in done.stdout.decode("utf-8", "replace").splitlines()]


def matches(expected, got):
    """Lines against lines, `...` for any number of them."""
    if "..." not in expected:
        return expected == got
    pattern = "".join(r"(?:.*\n)*" if line == "..." else re.escape(line) + r"\n" for line in expected)
    return re.fullmatch(pattern, "".join(line + "\n" for line in got)) is not None


def run_console(page, block, folder, environment, update):
    """Each command and its output; what the block's lines become."""
    lines, commands = [], block.commands()
    for n, (first, behind, command) in enumerate(commands):
        end = commands[n + 1][0] if n + 1 < len(commands) else len(block.lines)
        expected = [line.rstrip() for line in block.lines[behind:end]]
        code, got = run(command, folder, environment)
        refused = any("error:" in line for line in expected)
        good = (code != 0) == refused and (block.varies or matches(expected, got))
        changed = not good and update and "..." not in expected and (code != 0) == any("error:" in g for g in got)
        if changed:
            good, expected = True, got
        ok(good, f"{page.path}:{block.line}: {command.splitlines()[0]}",
           [f"exit code {code}"] + difference(expected, got))
        lines += block.lines[first:behind] + expected
    block.lines = lines


def difference(expected, got):
    return [f"page: {line}" for line in expected if line not in got and line != "..."][:6] + \
        [f"real: {line}" for line in got if line not in expected][-7:]


def dry_run(command):
    """A training for GPUs as a dry run of the same flags under the emulator's program; None: nothing of the kind."""
    found = re.search(r"\./train_gpt((?: |\\\n)[^|>&;]*)", command)
    if not found:
        return None
    ranks, nodes = re.search(r"-np? (\d+)", command), re.search(r"--nodes=(\d+)", command)
    world = ranks.group(1) if ranks else 8 * int(nodes.group(1)) if nodes else 1
    return f"./train_gpt_emu {found.group(1)} --dry-run --world {world}"


def run_page(page, work, environment, update):
    folder = fresh_folder(work)
    for block in page.blocks:
        where = f"{page.path}:{block.line}"
        if block.language not in ("sh", "console"):
            continue
        if block.not_run is not None:
            proof = re.match(r"run by (\S+)", block.not_run)
            why = [] if REASONS.match(block.not_run) else [f"no reason that is known: {block.not_run}"]
            if proof:
                path = os.path.join(ROOT, "dev/test", proof.group(1))
                names = set(re.findall(r"(?:scripts|dev)/[\w/]*?(\w+\.\w+)", "\n".join(block.lines)))
                why += [f"{name}: not in dev/test/{proof.group(1)}" for name in sorted(names)
                        if not os.path.exists(path) or name not in read(path)]
            for _, _, command in block.commands():
                instead = dry_run(command)
                code, got = run(instead, folder, environment) if instead else (0, [])
                why += got[-3:] if code else []
            ok(not why, f"{where}: not run, {block.not_run}", why)
        elif block.language == "console":
            run_console(page, block, folder, environment, update)
        else:
            code, got = run("\n".join(block.lines), folder, environment)
            ok(code == 0, f"{where}: {next((c[2] for c in block.commands()), '').splitlines()[0]}", got[-12:])
    shutil.rmtree(folder)


def updated(page):
    """The page's text with the blocks as they are now."""
    out, lines, i, blocks = [], page.text.split("\n"), 0, iter(page.blocks)
    while i < len(lines):
        out.append(lines[i])
        if re.match(r"```(\w*)$", lines[i]):
            block = next(blocks)
            out += block.lines + ["```"]
            i = lines.index("```", i + 1)
        i += 1
    return "\n".join(out)


# ---- all of it -------------------------------------------------------------------------------------------------------


def check_page(page, pages, ours, code):
    text = "\n".join(line for block in page.blocks if block.language not in ("sh", "console") for line in block.lines)
    hidden = re.findall(r"^(?:\$ |mpirun |\./train_gpt|bash scripts/|python3 |make ).*", text, flags=re.M)
    why = [f"line {block.line}: a block without a language" for block in page.blocks if not block.language]
    why += ["a block that does not end"] * page.open_fence
    why += [f"a command in a block of text: {line}" for line in hidden]
    ok(not why, f"{page.path}: blocks", why)
    for what, found in (("links", dead_links(page, pages)), ("files and targets", missing_files(page)),
                        ("flags", foreign_flags(page, ours)), ("papers", unknown_papers("\n".join(page.prose))),
                        ("code", old_code(page, code))):
        why = sorted(set(found))
        ok(not why, f"{page.path}: {what}", why)


def main():
    arguments = sys.argv[1:]
    update = "--update" in arguments
    wanted = [a for a in arguments if a != "--update"]
    os.chdir(ROOT)
    helps = {p: subprocess.run([f"./{p}", "--help"], capture_output=True, text=True, check=True).stdout
             for p in PROGRAMS}
    if update:
        write(FLAGS_PAGE, flags_page(helps))
    paths = ["README.md", "CONTRIBUTING.md"] + sorted(glob.glob("docs/**/*.md", recursive=True))
    # new-*.md: what a branch leaves to be worked into the pages
    pages = {path: Page(path) for path in paths if not os.path.basename(path).startswith("new-")}
    size = os.path.getsize("README.md")
    ok(size <= README_LIMIT, f"README.md has {size} bytes, at most {README_LIMIT}")
    flags = flags_page(helps)
    stale = difference(read(FLAGS_PAGE).splitlines(), flags.splitlines()) or ["the order of lines"]
    ok(read(FLAGS_PAGE) == flags, f"{FLAGS_PAGE} is what --help prints", stale + ["`make docs` writes it"])
    with tempfile.TemporaryDirectory() as work:
        subprocess.run([sys.executable, "docs/pictures/draw.py", work], check=True)
        drawn = sorted(os.listdir(work))
        _, stale, lost = filecmp.cmpfiles(work, "docs/pictures", drawn, shallow=False)
        stale += sorted(set(os.path.basename(p) for p in glob.glob("docs/pictures/*.svg")) - set(drawn))
        ok(not stale + lost, f"the {len(drawn)} pictures are what docs/pictures/draw.py draws", stale + lost)
    why = list(undescribed(helps, pages))
    ok(not why, "every scheme has a row in README.md, a page and its place in the picture", why)
    why = unlisted(pages)
    ok(not why, "docs/README.md lists every page", why)
    why = unknown_papers(read("CITATION.cff"))
    ok(not why, "CITATION.cff: papers are those that sources name", why)
    ours, code = our_flags(helps), {line.strip() for source in sources() for line in source.split("\n")}
    with tempfile.TemporaryDirectory() as work:
        environment = tools(work)
        for path, page in pages.items():
            if wanted and path not in wanted:
                continue
            check_page(page, pages, ours, code)
            run_page(page, work, environment, update)
            if update and updated(page) != page.text:
                write(path, updated(page))
    print(f"1..{checks}")
    return failures > 0


if __name__ == "__main__":
    sys.exit(main())
