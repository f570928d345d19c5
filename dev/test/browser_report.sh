#!/usr/bin/env bash
# browser_report.sh [DIR] - open report.html (of DIR, or of a toy comparison made here) and the planner's page in a
# headless Chromium at the width of a phone and of a desktop, in light and dark: nothing on the console, all pictures
# laid out, nothing wider than the window; the planner's numbers follow its sliders. Screenshots are left in
# build/report. Where there is no Chromium, that is said: apt-get install chromium. TAP; no part of
# scripts/test.sh, for a browser is half a gigabyte.
set -uo pipefail
given=${1-}
# shellcheck source=dev/test/tap.sh
source "$(dirname "$0")/tap.sh"
browser=$(command -v chromium || command -v chromium-browser || command -v google-chrome) || {
    say "1..0 # SKIP no chromium here: apt-get install chromium"
    exit 0
}
shots=build/report
mkdir -p $shots
page=$work/page/report.html
if [[ -n $given ]]; then
    page=$(absolute "$given")/report.html
else
    bash scripts/compare.sh --out "$work/page" --lengths 32,64 --ranks 1,2 --steps 4 --model tiny-llama --layers 1 \
        --dim 32 --heads 4 --kv-heads 2 --ffn 64 --selfcheck off --peak-tflops 1 >"$work/out" 2>&1
    ok $? "a report is made"
fi

# What the page looks like once it is laid out, told in its title, which --dump-dom prints.
probe='<script>addEventListener("load",()=>{const b=[...document.querySelectorAll("figure svg[role=img]")].filter(s=>{
const r=s.getBoundingClientRect();return r.width<100||r.height<50||r.right>innerWidth+1});
const all=document.querySelectorAll("figure svg[role=img]").length;
const table=JSON.parse(document.getElementById("report").textContent).runs.length;
const wide=Math.max(0,document.documentElement.scrollWidth-innerWidth);
document.title=`pictures ${all} bad ${b.length} wide ${wide} runs ${
table-document.querySelectorAll("tbody tr").length}`})</script>'
chromium() { # WIDTH DARK ARGS... FILE; the console goes to $work/console
    local width=$1 dark=$2 sandbox=()
    shift 2
    [[ $(id -u) -ne 0 ]] || sandbox=(--no-sandbox)
    timeout 120 "$browser" --headless "${sandbox[@]}" --disable-gpu --hide-scrollbars --user-data-dir="$work/profile" \
        --blink-settings=preferredColorScheme="$dark" --window-size="$width",2000 --enable-logging=stderr --v=0 "$@" \
        2>"$work/console"
}
quiet() { ! grep -E 'CONSOLE|Uncaught|net::ERR' "$work/console" >"$work/out"; }
for width in 390 1280; do
    { cat "$page" && say "$probe"; } >"$work/probe.html"
    chromium "$width" 1 --dump-dom "file://$work/probe.html" >"$work/dom" && quiet &&
        grep -oE '<title>pictures [^<]*' "$work/dom" >"$work/out" &&
        grep -qE '<title>pictures ([5-9]|1[0-9]) bad 0 wide 0 runs 0$' "$work/out"
    ok $? "$width wide: no word on the console, all pictures laid out, nothing wider than the window, a row a run:" \
        "$(cut -c 8- "$work/out")"
    for dark in 0 1; do
        chromium "$width" $dark --screenshot="$shots/report-$width-$([[ $dark == 1 ]] && say light || say dark).png" \
            "file://$page" >"$work/out" && quiet
        ok $? "$width wide, $([[ $dark == 1 ]] && say light || say dark): $shots has the picture"
    done
done

# ---- the planner: every slider at both of its ends, and the rates shown are those of the grid
make -s train_gpt_sim >"$work/out" 2>&1 && ./train_gpt_sim --html "$work/plan.html" --cluster h100-80gb-nvlink \
    --model llama2-7b >"$work/out" 2>&1
ok $? "a planner's page is made"
probe='<script>addEventListener("load",()=>{let wrong=[],n=0;
for(let a=0;a<axes.length;a++)for(const end of [0,axes[a][1].length-1]){
const input=document.querySelectorAll("#controls input,#controls select")[a];input.value=end;input.oninput();
let i=0;axes.forEach(([,values],b)=>{i=i*values.length+at[b]});
if(at[a]!==end)wrong.push("slider "+a);
document.querySelectorAll("#speed .row").forEach((row,k)=>{n++;const c=G.cells[i*G.schemes.length+k],
text=row.lastChild.textContent,rate=c?whole(G.batch*G.lengths[at[4]]/c[0]*1e6):"cannot run";
if(text.split(" \u00b7 ")[0]!==rate)wrong.push(`${text} is not ${rate}`)})}
const wide=Math.max(0,document.documentElement.scrollWidth-innerWidth);
document.title=`rates ${n} wrong ${wrong.length} wide ${wide} ${wrong.slice(0,3)}`})</script>'
{ cat "$work/plan.html" && say "$probe"; } >"$work/probe.html"
for width in 390 1280; do
    chromium "$width" 1 --dump-dom "file://$work/probe.html" >"$work/dom" && quiet &&
        grep -oE '<title>rates [^<]*' "$work/dom" >"$work/out" &&
        grep -qE '<title>rates [1-9][0-9]+ wrong 0 wide 0 $' "$work/out"
    ok $? "planner, $width wide: sliders choose, the rates are the grid's: $(cut -c 8- "$work/out")"
    chromium "$width" 1 --screenshot="$shots/planner-$width.png" "file://$work/plan.html" >"$work/out" && quiet
    ok $? "planner, $width wide: $shots has the picture"
done

checks_done
