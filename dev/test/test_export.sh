#!/usr/bin/env bash
# test_export.sh - scripts/watch.py and export.py on runs that grow, gain values late, and are cut back. TAP. Stand-ins
# take the place of wandb and trackio; TensorBoard's own reader is asked where this python3 (or PYTHON=) has it, and
# where it has not, that is said.
set -uo pipefail
# shellcheck source=dev/test/tap.sh
source "$(dirname "$0")/tap.sh"
python=${PYTHON:-python3} run=$work/first
has() { grep -qE -- "$1" "$work/out"; }
begin() { # STEPS: a run directory without steps
    rm -rf "$run" && mkdir "$run" && : >"$run/metrics.jsonl"
    say "{\"flags\": {\"steps\": $1, \"sp\": \"ring\"}, \"world\": 2}" >"$run/config.json"
}
row() { # STEP LOSS [MORE]
    say "{\"step\": $1, \"tokens\": 64, \"loss\": $2, \"step_ms\": 1500, \"tokens_per_s\": 42.5," \
        "\"mfu_causal\": null${3-}}"
}

# ---- in the terminal
begin 5
{ row 0 5.5 && row 1 null && row 2 4.5 ', "val_loss": 4.75' && row 3 4; } >>"$run/metrics.jsonl"
printf '{"step": 4, "lo' >>"$run/metrics.jsonl"
python3 scripts/watch.py "$run" >"$work/out" 2>&1 &&
    [[ $(cat "$work/out") == "first: step 4/5 | loss 4.0000 | val 4.7500 | 42 tok/s | eta 0:02  █▃▁" ]]
ok $? "watch.py: step, losses, rate, time to go, and the loss as a sparkline; a line being written is left alone"
begin 5
python3 scripts/watch.py --once "$run" >"$work/out" 2>&1 && [[ $(cat "$work/out") == "first: no step yet" ]]
ok $? "watch.py: a run that has not begun"
refuses() { # PATTERN COMMAND...: exit code 1 and one line
    local pattern=$1 code=0
    shift
    "$@" >"$work/out" 2>&1 || code=$?
    [[ $code -eq 1 && $(wc -l <"$work/out") -eq 1 ]] && has "$pattern"
    ok $? "refused: $(head -n 1 "$work/out" | cut -c 1-140)"
}
refuses '^watch: error: cannot read .*/config.json' python3 scripts/watch.py "$work"
refuses '^export: error: argument --to: invalid choice' python3 scripts/export.py "$run" --to paper
refuses '^export: error: --follow follows one run' python3 scripts/export.py "$run" "$run" --to wandb --follow
say '{"step": 0' >"$run/metrics.jsonl" && say '}' >>"$run/metrics.jsonl" && row 1 3 >>"$run/metrics.jsonl"
say '{"step": }' >"$run/metrics.jsonl"
refuses '^watch: error: .*metrics.jsonl, line 1 is damaged' python3 scripts/watch.py "$run"

# ---- wandb's and trackio's calls, by stand-ins that write down what they are told
mkdir "$work/standin"
cat >"$work/standin/trackio.py" <<END
import json
def note(*what): print(json.dumps(what), file=open("$work/calls", "a"))
def init(**how): note("init", how["project"], how["name"], how["config"]["world"], how.get("mode"))
def log(values, step): note("log", step, values)
def finish(): note("finish")
class api: api_key = None
END
cp "$work/standin/trackio.py" "$work/standin/wandb.py"
exports() { PYTHONPATH="$work/standin" python3 scripts/export.py "$run" "$@" >"$work/out" 2>&1; }
begin 3
{ row 0 5.5 && row 1 null ', "val_loss": 5'; } >"$run/metrics.jsonl"
rest='"step_ms": 1500, "tokens_per_s": 42.5'
for to in wandb trackio; do
    rm -f "$work/calls"
    mode=null && [[ $to != wandb ]] || mode='"offline"'
    exports --to $to --project p && has ": 2 steps to $to" && [[ $(cat "$work/calls") == \
        "[\"init\", \"p\", \"first\", 2, $mode]
[\"log\", 0, {\"tokens\": 64, \"loss\": 5.5, $rest}]
[\"log\", 1, {\"tokens\": 64, $rest, \"val_loss\": 5}]
[\"finish\"]" ]]
    ok $? "export.py --to $to: every number at its step, null left out, then finished"
done

# ---- live: the last line only once it is final, no step twice, the end with the last step
steps() { grep -o '"log", [0-9]*' "$work/calls" | tr -dc '0-9\n' | tr '\n' ' '; }
reaches() { # STEPS: they come within a minute
    for _ in {1..600}; do [[ $(steps 2>/dev/null) != "$1" ]] || return 0 && sleep 0.1; done
    return 1
}
begin 5
rm -f "$work/calls"
row 0 5 >"$run/metrics.jsonl" && row 1 4 >>"$run/metrics.jsonl"
(exports --to trackio --follow --settle 600) &
reaches '0 ' && [[ $(steps) == '0 ' ]]
ok $? "export.py --follow: a line that may yet gain values waits"
now() { "$@" >"$run/metrics.new" && cat "$run/metrics.new" >"$run/metrics.jsonl"; }
gained() { row 0 5 && row 1 4 ', "val_loss": 3.5' && row 2 3; }
now gained
reaches '0 1 ' && grep -q '"log", 1, .*"val_loss": 3.5' "$work/calls"
ok $? "export.py --follow: it comes with what it gained"
row 0 5 >"$run/metrics.jsonl" # resumed from the checkpoint after step 0
sleep 0.7
gone_on() { row 0 5 && row 1 4 && row 2 3 && row 3 2; }
now gone_on
reaches '0 1 2 '
ok $? "export.py --follow: a run cut back and going on gives no step twice"
row 4 1 >>"$run/metrics.jsonl" && touch -d '-1 hour' "$run/metrics.jsonl" && wait $! &&
    [[ $(steps) == '0 1 2 3 4 ' ]] &&
    [[ $(tail -n 1 "$work/calls") == '["finish"]' ]] && has ': 5 steps to trackio'
ok $? "export.py --follow: it ends with the run's last step"

# ---- TensorBoard's own writer and reader
begin 2
{ row 0 5.5 && row 1 null ', "val_loss": 4.5'; } >"$run/metrics.jsonl"
if ! $python -c 'import tensorboard' 2>/dev/null; then
    python3 scripts/export.py "$run" --to tensorboard >"$work/out" 2>&1
    [[ $? -eq 1 && ! -e $run/tensorboard ]] && has '^export: error: --to tensorboard: .*: pip install tensorboard$'
    ok $? "export.py --to tensorboard: what is missing is named with what installs it (SKIP: no tensorboard here, so" \
        "it was not read back)"
else
    $python scripts/export.py "$run" --to tensorboard >"$work/out" 2>&1 &&
        $python - "$run/tensorboard" >"$work/out" 2>&1 <<'PY'
import sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
reader = EventAccumulator(sys.argv[1])
reader.Reload()
read = {tag: [(e.step, e.value) for e in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}
assert read == {"tokens": [(0, 64), (1, 64)], "loss": [(0, 5.5)], "step_ms": [(0, 1500), (1, 1500)],
                "tokens_per_s": [(0, 42.5), (1, 42.5)], "val_loss": [(1, 4.5)]}, read
PY
    ok $? "export.py --to tensorboard: TensorBoard's own reader finds every number at its step"
    refuses 'tensorboard is there already' "$python" scripts/export.py "$run" --to tensorboard
fi
if $python -c 'import matplotlib' 2>/dev/null; then
    $python scripts/watch.py --png "$work/watch.png" "$run" >"$work/out" 2>&1 &&
        [[ $(head -c 4 "$work/watch.png" | tail -c 3) == PNG ]]
    ok $? "watch.py --png: a picture"
else
    refuses '^watch: error: --png needs matplotlib: pip install matplotlib' "$python" scripts/watch.py \
        --png "$work/watch.png" "$run"
fi

checks_done
