#!/usr/bin/env bash
# test_report.sh - scripts/compare.sh and its report at toy size, on the CPU and on the simulator: what the page shows
# is what the runs wrote, what differs is said, what was interrupted goes on. TAP. What is checked of a page:
# check_report.py; in a browser: browser_report.sh.
set -uo pipefail
# shellcheck source=dev/test/tap.sh
source "$(dirname "$0")/tap.sh"
schemes_of ./train_gpt_cpu
toy=(--model tiny-llama --layers 1 --dim 32 --heads 4 --kv-heads 2 --ffn 64 --selfcheck off --peak-tflops 1
    --train "$work/train_*.bin" --steps 4)
python3 dev/data/text_to_shards.py --out "$work" README.md >/dev/null || exit 1

compares() { bash scripts/compare.sh --out "$work/$1" "${@:2}" >"$work/out" 2>&1; }
has() { grep -qE -- "$1" "$work/out"; }
figures() { # DIR NAME...: these pictures and no others, in this order
    [[ $(grep -oE '<figure id="[^"]*"' "$work/$1/report.html" | cut -d '"' -f 2 | tr '\n' ' ') == "${*:2} " ]]
}
of_json() { # DIR EXPRESSION: true of its report.json, as d
    python3 -c 'import json, sys; d = json.load(open(sys.argv[1])); sys.exit(not eval(sys.argv[2]))' \
        "$work/$1/report.json" "$2" >>"$work/out" 2>&1
}

# ---- on the CPU: every scheme
grid=(--lengths 32,64 --ranks 1,2 "${toy[@]}")
compares cpu "${grid[@]}" && [[ $(grep -cE '^\[ ?[0-9]+/[0-9]+\] L .*: ok, .* to go$' "$work/out") -eq \
    $((2 + 2 * ${#schemes[@]})) ]] && has "^the report: $work/cpu/report.html" &&
    has "^$((2 * ${#schemes[@]})) runs on several ranks follow the loss of one rank to"
ok $? "compare.sh: every scheme at 2 lengths on 1 and 2 ranks, and where its report is"
python3 dev/test/check_report.py "$work/cpu" "$work/cpu/cells"/*/run >"$work/out" 2>&1
ok $? "the page loads nothing, its pictures are to scale, its numbers those of report.json, report.csv and the runs"
figures cpu loss-32 apart-32 loss-64 apart-64 gradients step-length rate-length bytes-length rate-ranks classes bytes \
    memory memory-time ladder
ok $? "all pictures are there: $(grep -o '<figure id' "$work/cpu/report.html" | wc -l)"
of_json cpu "all(0 < r['worst_gradient'] < 1e-5 for r in d['runs'] if r['ranks'] > 1 and r['seq_len'] == 32)" &&
    of_json cpu "len(d['ladder']) == ${#schemes[@]} and all(r['seq_len'] > 1e4 for r in d['ladder'])" &&
    of_json cpu "d['seeds'] == [42] and len(d['crossovers']['closed_form_bytes']) >= 1"
ok $? "gradients, ladder, crossovers and seeds are found"

# ---- a crossover by hand: of all bytes by the closed form, the least changes hands where two lines of it meet
python3 - "$work/cpu/report.json" >"$work/out" 2>&1 <<'PY'
import json, sys
d = json.load(open(sys.argv[1]))
at = {(r["name"], r["seq_len"]): sum(r["expected"].values()) for r in d["runs"] if r["ranks"] == 2}
def bytes_(name, L): return at[name, 32] + (at[name, 64] - at[name, 32]) * (L - 32) / 32
names = sorted({n for n, _ in at})
for c in d["crossovers"]["closed_form_bytes"]:
    for L, best in ((c["seq_len"] * 0.99, c["from"]), (c["seq_len"] * 1.01, c["to"])):
        assert bytes_(best, L) == min(bytes_(n, L) for n in names), (L, best, {n: bytes_(n, L) for n in names})
PY
ok $? "the closed form's crossover is where the fewest bytes change hands"

# ---- resumed: what is finished stays, what was interrupted is run again
stamp() { stat -c %y "$work/cpu/cells/$1/run/metrics.jsonl"; }
kept=$(stamp 64-2-ring) again=$(stamp 64-2-tp)
rm "$work/cpu/cells/64-2-tp/result"
compares cpu "${grid[@]}" && [[ $(grep -c 'finished before$' "$work/out") -eq $((1 + 2 * ${#schemes[@]})) ]] &&
    [[ $(stamp 64-2-ring) == "$kept" && $(stamp 64-2-tp) != "$again" ]]
ok $? "compare.sh: the same command goes on where it was"

# ---- what differs is said, on the page and by the exit code; and quickstart's way of calling
page() { # NAME: a report of one rank and a copy of ring's run, which the caller has changed
    mkdir -p "$work/$1"
    python3 scripts/report.py --out "$work/$1" "$work/cpu/cells/32-1-${schemes[0]}/run" "$work/changed" \
        >"$work/out" 2>&1
}
change() { # FILE SED: of a fresh copy
    rm -rf "$work/changed" && cp -r "$work/cpu/cells/32-2-ring/run" "$work/changed"
    [[ -z ${1-} ]] || sed -i -E "$2" "$work/changed/$1"
}
change && page same && python3 dev/test/check_report.py "$work/same" "$work/changed" >"$work/out" 2>&1 &&
    figures same loss-32 apart-32 gradients bytes memory
ok $? "report.py: of two runs, without a timeline, it draws what they have"
change metrics.jsonl '3s/"loss": [0-9.]*/"loss": 7/'
page loss
[[ $? -eq 1 ]] && has '^DIFFERS: ring on 2 ranks, L 32: the loss leaves .* from step 3 on; it jumped at step 3' &&
    grep -q '<p class="verdict bad">DIFFERS: ring' "$work/loss/report.html"
ok $? "report.py: a loss that leaves is named"
change comm.json '0,/"bytes":/s/("bytes":\s*[0-9]*)([0-9])/\19/'
page bytes
[[ $? -eq 1 ]] && has '^DIFFERS: ring on 2 ranks, L 32: .* bytes sent, closed form' &&
    grep -q 'NOT EQUAL' "$work/bytes/report.html"
ok $? "report.py: a byte more than the closed form is named"
change
python3 - "$work/changed/grads.safetensors" <<'PY'
import json, struct, sys
with open(sys.argv[1], "r+b") as file:
    size = struct.unpack("<Q", file.read(8))[0]
    begin, end = json.loads(file.read(size))["model.norm.weight"]["data_offsets"]
    file.seek(8 + size + begin)
    values = [2 * x for x in struct.unpack(f"<{(end - begin) // 4}f", file.read(end - begin))]  # summed twice
    file.seek(8 + size + begin)
    file.write(struct.pack(f"<{len(values)}f", *values))
PY
page twice
of_json twice "d['runs'][1]['gradients']['model.norm.weight'] == d['runs'][1]['worst_gradient']" &&
    of_json twice "abs(d['runs'][1]['worst_gradient'] - 1) < 1e-4" &&
    grep -q 'Worst: ring on 2 ranks: model.norm.weight, 1\.<' "$work/twice/report.html"
ok $? "report.py: a gradient that was summed twice is a whole gradient away, and named"

# ---- what cannot run: the others go on
compares refused --schemes tp,ring --lengths 32 --ranks 1,8 "${toy[@]}" && has '^1 runs did not run' &&
    grep -q '<li>tp on 8 ranks, L 32: .*4 query heads' "$work/refused/report.html" &&
    python3 dev/test/check_report.py "$work/refused" "$work/refused/cells"/32-8-ring/run >"$work/out" 2>&1
ok $? "compare.sh: a scheme that cannot split the heads is listed with its reason, the others are drawn"

# ---- on the simulator
compares sim --on sim:h100-80gb-nvlink --lengths 8K,64K --ranks 8,16 --recompute full &&
    has '^Simulated on h100-80gb-nvlink: nothing was trained\.' &&
    python3 dev/test/check_report.py "$work/sim" "$work/sim/cells"/*/forecast.json >"$work/out" 2>&1 &&
    figures sim step-length rate-length bytes-length rate-ranks classes bytes memory memory-time ladder
ok $? "compare.sh --on sim: the same page from forecasts"
./train_gpt_sim --cluster h100-80gb-nvlink --model llama2-7b --world 16 --batch 1 --recompute full --max-seq \
    --json "$work/max.json" >"$work/out" 2>&1
python3 - "$work/sim/report.json" "$work/max.json" >"$work/out" 2>&1 <<'PY'
import json, sys
d, most = (json.load(open(p)) for p in sys.argv[1:])
ladder = {r["scheme"]: r["seq_len"] for r in d["ladder"] if r["ranks"] == 16}
assert ladder == {r["sp"]: r["seq_len"] for r in most["longest"]}, (ladder, most)
PY
ok $? "compare.sh --on sim: the ladder is --max-seq's"

# ---- the planner's page: its cells are the forecasts
plan=(--cluster h100-80gb-nvlink --model llama2-7b)
./train_gpt_sim --html "$work/plan.html" "${plan[@]}" --seq-len 65536 >"$work/out" 2>&1 &&
    has "^planner  $work/plan.html: [0-9]+ forecasts" && for scheme in "${schemes[@]}"; do
    ./train_gpt_sim "${plan[@]}" --world 16 --seq-len 65536 --batch 1 --recompute full --sp "$scheme" \
        --json "$work/plan-$scheme.json" >/dev/null || break
done && python3 - "$work/plan.html" "$work" >"$work/out" 2>&1 <<'PY'
import json, re, sys
page = open(sys.argv[1]).read()
assert "@GRID@" not in page and not re.search(r'(src|href)=|https?:|url\(', page)
g = json.loads(re.search('id="grid">(.*?)</script>', page, re.S)[1])
axes = [g["models"], g["clusters"], g["recompute"], g["worlds"], g["lengths"]]
assert g["models"] == ["llama2-7b"] and g["clusters"] == ["h100-80gb-nvlink"] and g["lengths"] == [65536], axes
assert len(g["worlds"]) > 5 and len(g["cells"]) == len(g["worlds"]) * len(g["recompute"]) * len(g["schemes"])
i = g["recompute"].index("full") * len(g["worlds"]) + g["worlds"].index(16)
for k, scheme in enumerate(g["schemes"]):
    f = json.load(open(f"{sys.argv[2]}/plan-{scheme}.json"))
    step, mfu, ring, available, *rest = g["cells"][i * len(g["schemes"]) + k]
    memory, parts = rest[: len(g["memory"])], rest[len(g["memory"]):]
    assert abs(step - 1e3 * f["step_ms"]) <= 0.5 and abs(mfu - 1e3 * f["mfu_causal"]) <= 0.5, (scheme, step, f)
    assert ring == f["ring"] and abs(available - f["mem_available"] / 1e6) <= 0.5, (scheme, ring, available)
    assert all(abs(m - f["memory"][n] / 1e6) <= 0.5 for m, n in zip(memory, g["memory"], strict=True)), (scheme, memory)
    whole, waited = sum(parts[::2]), sum(parts[1::2])
    assert len(parts) == 2 * len(g["parts"]) and 0.97 * step < whole <= step + 9, (scheme, step, whole)
    assert abs(waited - 1e3 * f["comm_exposed_ms"]) <= 0.03 * step, (scheme, waited, f["comm_exposed_ms"])
PY
ok $? "train_gpt_sim --html: cells are the forecasts, parts make up the step and wait as long"
./train_gpt_sim --html "$work/heads.html" --model llama2-7b --cluster h100-80gb-nvlink --world 64 --seq-len 65536 \
    >"$work/out" 2>&1
grep -oE '"schemes":\[[^]]*\]|"cells":\[.*\]' "$work/heads.html" | grep -qE '"cells":\[\[[0-9]+,[0-9]+,2,'
ok $? "train_gpt_sim --html: where the heads do not divide, the smallest ring that runs"
no_page() { # PATTERN ARGS...
    local pattern=$1
    shift
    ! ./train_gpt_sim --html "$work/none.html" "$@" >"$work/out" 2>&1 && [[ $(wc -l <"$work/out") -eq 1 ]] &&
        [[ ! -e $work/none.html ]] && has "^train_gpt: error: $pattern"
    ok $? "refused: $(head -n 1 "$work/out" | cut -c 1-150)"
}
no_page '--html is a page of its own; leave out --plan' --plan --world 8
no_page '--html .* none of its configurations can run' --model llama2-7b --cluster h100-80gb-nvlink --world 7 --ring 3

# ---- refusals: one line, and no folder
refuses() { # PATTERN ARGS...
    local pattern=$1 code=0
    shift
    compares none "$@" || code=$?
    [[ $code -eq 1 && $(wc -l <"$work/out") -eq 1 && ! -e $work/none ]] && has "^compare.sh: error: .*$pattern"
    ok $? "refused: $(head -n 1 "$work/out" | cut -c 1-150)"
}
refuses "'megatron' is none of tp tpsp" --schemes tp,megatron
refuses "--lengths 256,x: 'x' is no whole number" --lengths 256,x
refuses "--ranks 0: '0' is no whole number" --ranks 0
refuses '--steps two: must be' --steps two
refuses '--on tpu: must be cpu, gpu or sim:CLUSTER' --on tpu
refuses '--seq-len: this script sets it; --lengths' --seq-len 64
refuses '--lengths needs a value' --lengths
refuses '--train .*: no such file' --train "$work/nothing_*.bin"
compares cpu --lengths 32 --ranks 1 "${toy[@]}"
[[ $? -eq 1 ]] && has "^compare.sh: error: --out $work/cpu holds other runs \(on=cpu "
ok $? "compare.sh: runs of other settings are not mixed"
rm "$work/changed/config.json" && page none2
[[ $? -eq 1 && $(wc -l <"$work/out") -eq 1 ]] && has '^report: error: cannot read .*config.json'
ok $? "report.py: a directory that is no run is named"

checks_done
