#!/usr/bin/env python3
"""transformers_check.py - a model goes from transformers into the trainer, is trained, and goes
back: the same model on both sides.

For each of the models in fixtures/, and a larger one and a Phi-3 made here:
  in      transformers saves it (in shards), and the trainer has the logits that transformers has, in float32 to 1e-4
  out     the trainer trains it on two ranks and saves; transformers loads that checkpoint as it lies there, with no
          name missing or left over, and has the validation loss that the trainer had before it saved and the logits
          that it has from the checkpoint, to 1e-4
  greedy  from that checkpoint both continue the same tokens with the same tokens

TAP. Needs torch and transformers, which the tests of scripts/test.sh do without; some two minutes on two cores.

  python3 -m venv /tmp/fx && /tmp/fx/bin/pip install torch transformers safetensors numpy
  make train_gpt_cpu build/test_fixtures_fp32
  /tmp/fx/bin/python dev/test/transformers_check.py [MODEL...]     # PROGRAM=./train_gpt_cpu
"""
import json, os, shutil, subprocess, sys, tempfile, warnings
import numpy, torch, transformers
from safetensors.numpy import save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Phi3Config, Phi3ForCausalLM

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
PROGRAM = os.environ.get("PROGRAM", "./train_gpt_cpu")
B, T, GREEDY = 2, 12, 16
checks = failed = 0


def ok(good, text):
    global checks, failed
    checks += 1
    failed += not good
    print(f"{'ok' if good else 'not ok'} {checks} - {text}", flush=True)


def run(*command):
    """Output of a command in the repository's root; None, and the output shown, where it fails."""
    done = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600)
    if done.returncode == 0:
        return done.stdout
    print("# " + (done.stdout + done.stderr).strip()[-1500:].replace("\n", "\n# "))
    return None


def ranks(n, *command):
    return run("bash", "-c", 'source scripts/common.sh && run_ranks "$@"', "ranks", str(n), *command)


def load(directory):
    """The model as transformers takes it, and the names that did not fit."""
    model, info = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, output_loading_info=True)
    wrong = {what: names for what, names in info.items() if names}
    return model.eval(), wrong


def same_logits(model, directory):
    """Does the trainer have the logits for the model in `directory` that `model` has? What it says."""
    tokens = torch.randint(0, model.config.vocab_size, (B, T + 1), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        logits = model(tokens[:, :-1]).logits
    copy = directory + "-and-logits"
    shutil.copytree(directory, copy)
    save_file({"tokens": tokens.numpy().astype(numpy.int32), "logits": logits.double().numpy()},
              os.path.join(copy, "expected.safetensors"))
    said = run("build/test_fixtures_fp32", "logits", copy)
    return said is not None and said.startswith("ok 1"), (said or "").split("\n")[0].partition("logits ")[2]


def shard(path, vocab):
    tokens = numpy.random.default_rng(7).integers(0, vocab, 4000).astype(numpy.uint16)
    header = numpy.zeros(256, numpy.int32)
    header[:3] = 20240520, 1, len(tokens)
    with open(path, "wb") as file:
        file.write(header.tobytes() + tokens.tobytes())
    return torch.from_numpy(tokens.astype(numpy.int64))


def loss(model, tokens, length, sequences):
    """Mean over the first sequences of a shard, as --eval-batches takes them."""
    x = torch.stack([tokens[i * length : (i + 1) * length] for i in range(sequences)])
    y = torch.stack([tokens[i * length + 1 : (i + 1) * length + 1] for i in range(sequences)])
    with torch.no_grad():
        return torch.nn.functional.cross_entropy(model(x).logits.flatten(0, 1), y.flatten()).item()


def check(name, model, work):
    given = os.path.join(work, "given")
    model.save_pretrained(given, max_shard_size="40KB")
    good, how = same_logits(model.eval(), given)
    ok(good, f"{name}: what transformers writes ({len(os.listdir(given))} files) has its logits here: {how} apart")
    data = os.path.join(work, "data.bin")
    tokens = shard(data, model.config.vocab_size)
    out = os.path.join(work, "run")
    said = ranks(2, PROGRAM, "--model", given, "--train", data, "--val", data, "--eval-batches", "8", "--seq-len", "16",
                 "--batch", "2", "--steps", "6", "--lr", "0.01",
                 "--sp", "odysseus", "--selfcheck", "off", "--peak-tflops", "100", "--out", out, "--save-every", "6")
    step = os.path.join(out, "checkpoints", "step-00000006")
    if said is None or not os.path.isdir(step):
        ok(False, f"{name}: it does not train")
        return
    back, wrong = load(step)
    moved = max((a - b).abs().max().item() for a, b in zip(back.parameters(), model.parameters()))
    ok(not wrong and type(back) is type(model) and moved > 1e-3,
       f"{name}: transformers loads the checkpoint {wrong or 'with every name'}; a weight has moved by {moved:.2g}")
    with open(os.path.join(out, "metrics.jsonl"), encoding="utf-8") as file:
        here = json.loads(file.readlines()[-1])["val_loss"]
    there = loss(back, tokens, 16, 16)
    ok(abs(here - there) <= 1e-4, f"{name}: its loss there is {there:.6f}, here {here:.6f}")
    good, how = same_logits(back, step)
    ok(good, f"{name}: and has the logits that it has here: {how} apart")
    prompt = torch.tensor([[3, 1, 4, 1, 5]])
    want = back.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=GREEDY,
                         eos_token_id=None, pad_token_id=0)[0, 5:].tolist()
    if "--sample-ids" not in run(PROGRAM, "--help"):
        ok(True, f"{name}: greedy continuation # SKIP {PROGRAM} does not sample")
        return
    said = run(PROGRAM, "--model", step, "--eval-only", "--sample-ids", "3,1,4,1,5", "--sample-tokens", str(GREEDY),
               "--temperature", "0", "--seq-len", "32")
    got = sampled(said)
    same = got[-GREEDY:] == want
    ok(same, f"{name}: greedy continuation {want}" + ("" if same else f", here {got}"))


def sampled(said):
    """The numbers of the line after the prompt's, in whatever words."""
    numbers = []
    for line in (said or "").split("\n"):
        words = line.replace(",", " ").split()
        if len(words) > GREEDY and all(word.isdigit() for word in words[-GREEDY:]):
            numbers = [int(word) for word in words if word.isdigit()]
    return numbers


def main():
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(1)
    larger = LlamaForCausalLM(LlamaConfig(hidden_size=128, intermediate_size=352, num_hidden_layers=4,
                                          num_attention_heads=8, num_key_value_heads=2,
                                          vocab_size=512, max_position_embeddings=256, bos_token_id=None,
                                          eos_token_id=None))
    models = {name: load(os.path.join(ROOT, "dev/test/fixtures", name))[0]
              for name in ("gpt2-tied", "llama-mha", "llama-gqa", "llama3-rope")}
    models["llama of 0.9M"] = larger
    longrope = {"rope_type": "longrope", "short_factor": [1.0, 1.1, 1.3, 2.0], "long_factor": [1.1, 2.5, 9.0, 30.0]}
    models["phi3"] = Phi3ForCausalLM(Phi3Config(hidden_size=32, intermediate_size=40, num_hidden_layers=2,
                                                num_attention_heads=4, num_key_value_heads=2, vocab_size=61,
                                                max_position_embeddings=128, original_max_position_embeddings=8,
                                                rope_parameters=longrope, sliding_window=7, pad_token_id=None,
                                                bos_token_id=None, eos_token_id=None))
    print(f"# torch {torch.__version__}, transformers {transformers.__version__}, {PROGRAM}")
    only = sys.argv[1:]
    for name, model in models.items():
        if only and name not in only:
            continue
        with tempfile.TemporaryDirectory() as work:
            check(name, model, work)
    print(f"1..{checks}")
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
