#!/usr/bin/env bash
# faults.sh - a check that cannot fail is none: plant one fault at a time in a copy of the
# sources and see the tests fail.
#
#   fault    file, a sed expression that must change it, the test that must then fail, its ranks (alone: without
#            mpirun) and arguments
#   emulated the same for a kernel of kernels/cuda and its test under the emulator
#   caught   the same for the program itself: the error with which it must stop, ranks, flags
#   misread  the same for a page of the documentation and check_docs.py
#   trained  the same for the CUDA program under the emulator, in an environment (dev/emu/runtime.h): it ends
#            otherwise than without
# faults.sh WORDS: only those whose name holds WORDS. Prints TAP, a line a fault. Takes some fifteen minutes on two
# cores; scripts/test.sh --long runs it.
set -uo pipefail
cd "$(dirname "$0")/../.."
source scripts/common.sh
copy=$(mktemp -d)
data=$(mktemp -d)
trap 'rm -rf "$copy" "$data"' EXIT
python3 dev/data/text_to_shards.py --out "$data" train_gpt.cu >/dev/null || exit 1
arch=$(make -s print-opt | grep -o -- '-m[^ ]*')
n=0 failed=0 only=${1:-}

plant() { # plant WHAT FILE SED SOURCE PROGRAM: a copy of the sources with the fault in it, compiled
    local what=$1 file=$2 expression=$3 source=$4 program=$5
    [[ $what == *"$only"* ]] || return 1
    n=$((n + 1))
    rm -rf "${copy:?}"/*
    cp -r train_gpt.cu ./*.h core kernels sim dev "$copy"
    sed -i -E "$expression" "$copy/$file"
    if cmp -s "$file" "$copy/$file"; then
        echo "not ok $n - $what: the fault could not be planted in $file"
        failed=$((failed + 1))
        return 1
    fi
    # the fault may leave something unused: no -Werror here
    local compile=(mpicc -x c -std=c11 -O2 $arch -ffp-contract=fast -fopenmp -fno-math-errno -D_GNU_SOURCE
        -DODYSSEUS_FP64 -w)
    [[ $source != dev/test/*.cu && $program != *_emu ]] ||
        compile=(mpicxx -x c++ -std=c++20 -I"$copy/dev/emu" -O1 $arch -fopenmp -D_GNU_SOURCE -DODYSSEUS_CUDA
        -DODYSSEUS_HOPPER -DODYSSEUS_NCCL -DOMPI_SKIP_MPICXX -DMPICH_SKIP_MPICXX -w)
    [[ $source != */test_simulator.c ]] ||
        compile=(gcc -x c -std=c11 -O2 -fopenmp -D_GNU_SOURCE -DODYSSEUS_SIM -DODYSSEUS_NO_MPI -w)
    if ! "${compile[@]}" "$copy/$source" -o "$copy/$program" -lcjson -lm 2>"$copy/log"; then
        echo "not ok $n - $what: does not compile: $(head -n 1 "$copy/log")"
        failed=$((failed + 1))
        return 1
    fi
}

caught() { # caught WHAT FILE SED PATTERN RANKS FLAGS...
    local what=$1 file=$2 expression=$3 pattern=$4 ranks=$5
    shift 5
    plant "$what" "$file" "$expression" train_gpt.cu train_gpt || return
    if ! run_ranks -t 600 "$ranks" "$copy/train_gpt" --train "$data/train_*.bin" --seq-len 64 --steps 2 "$@" \
        >"$copy/log" 2>&1 &&
        grep -qE "^train_gpt: error: .*$pattern" "$copy/log"; then
        echo "ok $n - $what: $(grep -m 1 -oE "$pattern.*" "$copy/log" | cut -c 1-110)"
    else
        echo "not ok $n - $what: the program did not stop with '$pattern': $(tail -n 1 "$copy/log")"
        failed=$((failed + 1))
    fi
}

outcome() { # outcome PROGRAM SETTINGS RANKS FLAGS...: the losses of two steps, or the error with which it stops
    local program=$1 settings=$2 ranks=$3 out=$copy/outcome
    shift 3
    rm -rf "$out"
    # shellcheck disable=SC2086
    if run_ranks -t 600 "$ranks" env $settings "$program" --layers 2 --dim 64 --heads 4 --ffn 256 \
        --train "$data/train_*.bin" --seq-len 48 --batch 4 --steps 2 --out "$out" "$@" >"$copy/log" 2>&1; then
        grep -oE '"loss": *[^,]*' "$out/metrics.jsonl" | tr '\n' ' '
    else
        grep -m 1 -oE '^emulator: .*|error: .*' "$copy/log" | cut -c 1-150
    fi
}

trained() { # trained WHAT FILE SED SETTINGS RANKS FLAGS...
    local what=$1 file=$2 expression=$3 sound faulty
    shift 3
    plant "$what" "$file" "$expression" train_gpt.cu train_gpt_emu || return
    make -s train_gpt_emu >/dev/null || exit 1
    sound=$(outcome ./train_gpt_emu "$@")
    faulty=$(outcome "$copy/train_gpt_emu" "$@")
    if [[ -n $sound && $faulty != "$sound" ]]; then
        echo "ok $n - $what: $faulty, not $sound"
    else
        echo "not ok $n - $what: the program did not see it: $sound"
        failed=$((failed + 1))
    fi
}

emulated() { # emulated WHAT FILE SED TEST [ARGS...]
    local what=$1 file=$2 expression=$3 test=$4 code=0
    shift 4
    plant "$what" "$file" "$expression" "dev/test/$test.cu" "$test" || return
    timeout 300 "$copy/$test" "$@" >"$copy/log" 2>&1 || code=$?
    if [ $code -ne 0 ]; then
        echo "ok $n - $what: $test fails $(grep -c '^not ok' "$copy/log")" \
            "checks$(grep -m 1 '^emulator' "$copy/log" | sed 's/^/; /' | cut -c 1-120)"
    else
        echo "not ok $n - $what: $test did not see it"
        failed=$((failed + 1))
    fi
}

misread() { # misread WHAT FILE SED PAGE PATTERN: checking PAGE fails where PATTERN says
    local what=$1 file=$2 expression=$3 page=$4 pattern=$5
    [[ $what == *"$only"* ]] || return
    n=$((n + 1))
    make -s train_gpt_cpu train_gpt_sim train_gpt_emu >/dev/null || exit 1
    rm -rf "${copy:?}"/*
    cp -r Makefile ./*.md CITATION.cff docs train_gpt.cu ./*.h core kernels sim dev scripts "$copy"
    ln -s "$PWD"/train_gpt_{cpu,sim,emu} "$copy"
    sed -i -E "$expression" "$copy/$file"
    if cmp -s "$file" "$copy/$file"; then
        echo "not ok $n - $what: the fault could not be planted in $file"
        failed=$((failed + 1))
    elif ! python3 "$copy/dev/test/check_docs.py" "$page" >"$copy/log" 2>&1 &&
        [[ $(grep -c '^not ok' "$copy/log") -eq $(grep -cE "^not ok.*$pattern" "$copy/log") ]]; then
        echo "ok $n - $what: $(grep -m 1 -oE "$pattern.*" "$copy/log" | cut -c 1-110)"
    else
        echo "not ok $n - $what: check_docs.py did not see it where '$pattern' is: $(grep -m 1 '^not ok' "$copy/log")"
        failed=$((failed + 1))
    fi
}

fault() { # fault WHAT FILE SED TEST RANKS [ARGS...]
    local what=$1 file=$2 expression=$3 test=$4 ranks=$5 code
    shift 5
    plant "$what" "$file" "$expression" "dev/test/$test.c" "$test" || return
    mkdir -p "$copy/tmp"
    if [[ $ranks == alone ]]; then timeout 600 "$copy/$test" "$@" >"$copy/log" 2>&1
    else TMPDIR=$copy/tmp CHECKS=first run_ranks -t 600 "$ranks" "$copy/$test" "$@" >"$copy/log" 2>&1; fi
    code=$?
    if [ $code -ne 0 ] && grep -qE '^not ok|^train_gpt: error|signal|An error occurred in MPI' "$copy/log"; then
        echo "ok $n - $what: $test: $({ grep '^not ok' "$copy/log" || grep -E 'error:|signal' "$copy/log"; } |
            head -n 1 | cut -c 1-120)"
    else
        echo "not ok $n - $what: $test did not see it"
        failed=$((failed + 1))
    fi
}

S="test_schemes 4 1 2 4"
# each rank's targets from the tokens it holds itself, as a trainer that rolls its part by one
SHIFTED='s/^( *dataset_targets\(d, sequence, \&m->own_map, 1, .*, targets, b, m->B\);)/\1 @loop/;
    s/@loop/for (i64 i = 0; i < m->T_own; i++) targets[i * m->B + b] = @token;/;
    s/@token/tokens[(m->own_first + (i + 1) % m->T_own) * m->B + b]/'
# shellcheck disable=SC2086
{
fault 'ring: blocks are not merged' ring.h \
    '0,/visitor_call\(m, s, hop, hop > 0\)/s//visitor_call(m, s, hop, 0)/' $S
fault 'ring: query gradients of earlier blocks are lost' ring.h \
    '/visitor_last\(m, s\) \? sums/,/visitor_call/s/visitor_call\(m, s, hop, hop > 0\)/visitor_call(m, s, hop, 0)/' $S
fault 'ring: a share that nobody made is sent on' ring.h \
    's/^ +else zero_fill\(.*$//' $S
fault 'ring: the exchange is skipped' ring.h \
    '0,/kv = arriving;/s//kv = s->kv;/' $S
fault 'contexts: gradients never come home' core/blocks.h \
    's/^    if \(h->arrived\) sum_parts\(\&m->dev, h->dkv_sum.*$//' $S
fault 'ring-backward q: gradients of queries never come home' ring.h \
    's/^    sum_parts\(\&m->dev, dq_sum, arrived.*$//' $S
fault 'ring-backward q: keys forget what travelling queries found' ring.h \
    's/^    if \(hop\) sum_parts\(\&m->dev, dkv, share.*$//' $S
fault 'ring-backward q: the documents of the own queries taken for all' ring.h \
    's/s->sight->others \+ from \* ring_rows\(m\)/s->sight->lo/' test_masks 4 4
fault 'closed form of travelling queries without lse and delta' ring.h \
    's/ \+ 2 \* accum_size\(\)\);/);/' $S
fault 'allgather: the share of the owner is lost' allgather.h \
    's/g->parts, count, DTYPE_ACCUM, 1\)/g->parts, count, DTYPE_ACCUM, 0)/' $S
fault 'allgather: a rank adds to its own keys what nobody made' allgather.h \
    's/^    zero_fill\(\&m->dev, share \+ m->mesh.*//' $S
fault 'allgather: a share that nobody made is summed' allgather.h \
    's/^ +else zero_fill\(.*//' $S
fault 'allgather: the positions of another rank' allgather.h \
    's/visitor_map\(m, s\.turn\)/visitor_map(m, s.turn + 1)/' $S
fault 'allgather: every piece in one place' allgather.h \
    's/return g->room\[at->piece % 2\]/return g->room[0]/' $S
fault 'allgather: each rank the keys of another' allgather.h \
    's/ \+ visitor_rank\(m, at->turn\) \* at->count/ + m->mesh.ring_rank * at->count/' $S
fault 'ring: visitors taken for their neighbours' core/blocks.h \
    's/ring_rank - turn \+ R/ring_rank - turn + 1 + R/' $S
fault 'zigzag: second chunk shifted' core/positions.h \
    's/2 \* ranks - 1 - rank/2 * ranks - 2 - rank/' $S
fault 'stripe: contiguous instead' core/positions.h \
    's/layout == RING_CONTIGUOUS\)/layout != RING_ZIGZAG)/' test_positions 1
fault 'tp: bias gradient over all tokens on every rank' tpsp.h \
    's/dstream \+ m->own_first \* m->B \* m->config.dim, own_rows\(m\)/dstream, stream_rows(m)/' $S
fault 'tp: norm gradient over all tokens on every rank' train_gpt.cu \
    's/m->own_first \* m->B, own_rows\(m\)\);/0, stream_rows(m));/' $S
fault 'tpsp: bias added before the sum, on every rank' tpsp.h \
    's/heads_attention_forward\(m, s, partial, .*\);/& real *o = m->zero.weight[T_O_BIAS]; @early/;
     s/@early/if (o) bias_add(\&m->dev, partial, o, ring_rows(m), m->config.dim);/;
     s/tp_bias\(m, T_O_BIAS, out\);//' $S
fault 'tpsp: reduce-scatter forgotten in backward' tpsp.h \
    '0,/= tp_leave\(m, t, dxn, partial\);/s//= NULL;/' $S
fault 'tpsp: the sum leaves before keys and values have added to it' tpsp.h \
    's/^    HeadsBackward h = .*/    Request *leaving = NULL;\n&/;
     s/^    project_q_backward_input.*/&\n    leaving = tp_leave(m, t, dxn, partial);/;
     0,/Request \*leaving = tp_leave.*/s///' $S
fault 'tpsp: weight gradients before their input has arrived' tpsp.h \
    's/^    tp_arrived\(m, \&all\);//;
     s/mlp_body_backward_weight\(m, dpre, tp_arrived\(m, \&all\)/mlp_body_backward_weight(m, dpre, all.rows/;
     s/^    comm_wait\(\&m->fabric, leaving\);/    tp_arrived(m, \&all);\n&/' $S
fault 'all-reduce: what the others have summed does not arrive' core/comm.h \
    's/if \(r->group \&\& !f->dev->plan\)/if (r->group \&\& f->dev->plan)/' test_comm 4
fault 'ulysses: KV copies not added up' kernels/cpu/heads.h \
    's/\+= /= /g' $S
fault 'replicated KV counted by every replica' core/zero.h \
    's/ \? SHARE_KV : SHARE_SPLIT/ ? SHARE_SPLIT : SHARE_SPLIT/' $S
fault 'tied embedding forgets the head' core/zero.h \
    's/int continues = .*;/int continues = 0;/' $S
fault 'targets are their own tokens' train_gpt.cu \
    's/(dataset_targets\(d, sequence, \&m->own_map, )1/\10/' test_fixtures 1
fault 'targets shifted after the split' train_gpt.cu \
    "$SHIFTED" $S
fault 'loss averaged over this rank only' train_gpt.cu \
    's/^    comm_sum_control\(.*\&counted, 1\);//' $S
fault 'gradients scaled by ranks' train_gpt.cu \
    's/scale = \(accum\)\(1\.0 \//scale = (accum)(1.0 * t->options.shape.world \//' $S
fault 'ignored targets counted' core/data.h \
    's/if \(column\[j \* B\] == ignored\)/if (0)/' test_gradients 1
fault 'micro-batches read the same sequences' train_gpt.cu \
    's/\(micro \* m->mesh/(0 * micro * m->mesh/' $S
fault 'recompute skips the norm' train_gpt.cu \
    's/if \(!m->recompute \|\| \(m->one_input \&\& !sums\)\) norm/if (1) norm/' $S
fault 'ledger counts its own part' core/comm.h \
    '0,/COMM_ALL_GATHER, t, \(c->size - 1\)/s//COMM_ALL_GATHER, t, (c->size)/' $S
fault 'closed form of the ring forgotten' train_gpt.cu \
    's/^    model_expect_part\(m, m->context->volume.*//' $S
fault 'closed form without the repeated forward' train_gpt.cu \
    's/\(m->recompute \&\& m->scheme->repeats_exchange\)/0/' $S
fault 'levers: attention made again although it is kept' core/blocks.h \
    's/if \(m->phase == PHASE_BACKWARD \&\& .*KEPT\) zero_prefetch/if (0) zero_prefetch/' test_levers 4
fault 'levers: a tile takes its neighbour for its input' core/blocks.h \
    's/pre\(m, t, row\), width, xn \+ row \* C,/pre(m, t, row), width, xn,/' test_levers 4
fault 'levers: only the last tile adds to the weights' core/blocks.h \
    's/^    first_backward_weight\(m, mlp_first/    if (row + t->tile >= t->rows) &/' test_levers 4
fault 'levers: tiles as large as all rows' core/blocks.h \
    's/take_real\(m, MEM_WORKSPACE, tile \* width\)/take_real(m, MEM_WORKSPACE, rows * width)/g' test_memory 1
fault 'levers: nobody waits for a layer to come back' core/offload.h \
    's/i < o->items; i\+\+\) host_copy_wait\(dev, \&o->back.*/i < 0; i++) ;/' test_levers 4
fault 'levers: a place is taken before its layer is out' core/offload.h \
    's/i < o->items; i\+\+\) host_copy_wait\(dev, \&o->out.*/i < 0; i++) ;/' test_levers 4
fault 'levers: every group of heads in the first one'"'"'s place' ulysses.h \
    's/m->recompute \? j % 2 : j, kv/0, kv/' test_levers 4
fault 'levers: of several readers of a KV head only the first counts' ulysses.h \
    's/^    if \(mine != dkv\) sum_parts.*//' test_levers 4
fault 'levers: KV heads sent with every group that reads them' ulysses.h \
    's/^    if \(!group_opens\(\&e->g, j\)\) return;//' test_levers 4
fault 'levers: the last group never comes back' ulysses.h \
    's/exchange_returned\(m, \&again, g.groups - 1\), //' test_levers 4
fault 'levers: one place for what every layer keeps of attention' train_gpt.cu \
    's/if \(l > 0 \&\& m->recompute == RECOMPUTE_ATTENTION_KEPT \&\& apart\)/if (0)/' test_levers 4
fault 'levers: what enters the MLP is attention without the stream' train_gpt.cu \
    's/sums \? s->x : NULL/NULL/; s/sums \? m->attention\[l\].in.x : s->x/s->x/' test_levers 4
fault 'levers: with one input a layer, no turn back of what was kept' ulysses.h \
    's/if \(j > 0\) group_merge\(m, \&g, s->out_local/if (j > 1) group_merge(m, \&g, s->out_local/' test_levers 4
fault 'levers: q and kv made again are not counted' train_gpt.cu \
    's/^        m->scheme->volume_twice.*/        ;/' test_levers 4
fault 'closed form of ulysses off' ulysses.h \
    's/2 \* attention_width\(c\) \/ N/attention_width(c) \/ N/' $S
fault 'arena: a buffer the plan does not see' train_gpt.cu \
    's/(if \(!m->dev\.plan\)) load_micro_batch/\1 take_real(m, MEM_WORKSPACE, 1 << 20); &/' $S
fault 'memory: the sequence named is one step too long' core/fit.h \
    's/return fits \* unit;/return fails * unit;/' test_memory 1
fault 'memory: a run of several micro-steps needs more than its plan' train_gpt.cu \
    's/^        model_walk\(m, scale\);/        take_real(m, MEM_WORKSPACE, 1024);\n&/' test_memory 1
fault 'a refusal offers what cannot work' core/scheme.h \
    's/if \(works\(c, v\)\) \*below = v;/*below = v;/' test_schemes 6 6
fault 'zigzag work unbalanced' core/positions.h \
    's/layout == RING_CONTIGUOUS\)/layout != RING_STRIPE)/' $S
fault 'collectives: wrong part summed' core/comm.h \
    's/char \*own = .*;/char *own = (char *)buf;/' test_comm 4
fault 'collectives: reduce-scatter forgets one rank' core/comm.h \
    '/r->n_parts = c->size, r->type = r->sum_type = type,$/{N;s/c->size(.*r->add)/c->size - 1\1/}' test_comm 4
fault 'collectives: control sum loses its last value' core/comm.h \
    's/i64 chunk = ceil_div\(n, c->size\), all/i64 chunk = n \/ c->size, all/' test_comm 4
fault 'large types lay their rest over the start' core/wire_mpi.h \
    's/\(MPI_Aint\)\(bytes \/ big \* big\)/(MPI_Aint)0/' test_comm 1
fault 'watch: a rank that works is taken for one that stands still' core/wire_watch.h \
    's/if \(!silent \&\& works >= 0\)/if (0)/' test_comm 3
fault 'watch: nobody answers' core/wire_watch.h \
    's/^ +watch_answer\(w, from.MPI_SOURCE, round\);//' test_comm 3
fault 'warmup one step late' core/schedule.h \
    's/\(double\)\(step \+ 1\) \/ \(double\)s->warmup/(double)step \/ (double)s->warmup/' test_fixtures 1
fault 'visible: documents begin at their end' core/visible.h \
    's/tokens\[p - 1\] == eot/tokens[p] == eot/' test_masks 4 4
fault 'visible: a pair too few is counted' core/visible.h \
    's/lo\[t \* m->B \+ b\] - 1\)/lo[t * m->B + b])/' test_masks 4 4
fault 'visible: every sequence sees what the last one does' core/visible.h \
    's/host\[t \* m->B \+ b\] =/host[t * m->B + 0 * b] =/' test_masks 4 4
fault 'visible: positions run on through documents' core/visible.h \
    's/\(start \? p - start\[p\] : p\)/p/' test_masks 4 4
fault 'visible: first tokens are targets' train_gpt.cu \
    's/return t->options.inside \&\& .*/return 0;/' test_masks 4 4
fault 'visible: blocks that nobody sees are computed' core/blocks.h \
    's/(return turn == 0 \|\| visitor_pairs.*) > 0;/\1 >= 0;/' test_masks 4 4
fault 'visible: closed form of windows' core/visible.h \
    's/q.first -= window;/q.first -= window + 1;/' test_masks 4 4
fault 'visible: embedding gradients of running positions' train_gpt.cu \
    's/m->place \+ own, m->own_map/m->tokens + own, m->own_map/' test_masks 4 4
fault 'sample: windows are forgotten' core/sample.h \
    's/i64_max\(start, sight_lo\(.*, NULL, p\)\)/start/' test_sample 2
fault 'sample: a document sees those before it' core/sample.h \
    's/i64_max\(start, sight_lo\((.*), NULL, p\)\)/sight_lo(\1, NULL, p)/' test_sample 2
fault 'sample: keys of another place' core/sample.h \
    's/return before \+ off \/ run->stride;/return off \/ run->stride;/' test_sample 4
fault 'sample: the parts of a ring weighed alike' core/sample.h \
    's/value \+= exp\(.* - top\) \/ sum/value += 1.0 \/ R/' test_sample 4
fault 'sample: keys of the first head everywhere' core/sample.h \
    's/kv_row = split \? 0 : .*;/kv_row = 0;/' test_sample 4
fault 'sample: a layer without a cache of its own' train_gpt.cu \
    's/m->recompute \&\& m->samples/0/' test_sample 4
fault 'sample: top-p keeps one token too many' core/sample.h \
    's/kept < top_p \* sum/kept - (n ? all[n - 1].weight : 0) < top_p * sum/' test_sample 1
fault 'tokenizer: digits by four' core/tokenizer.h \
    's/PIECES_LLAMA3 \? 3/PIECES_LLAMA3 ? 4/' test_tokenizer alone
fault 'tokenizer: no capitals in contractions' core/tokenizer.h \
    's/n - i, newer\)/n - i, 0)/' test_tokenizer alone
fault 'tokenizer: the leftmost merge first' core/tokenizer.h \
    's/a->m.rank != b->m.rank/0/' test_tokenizer alone
fault 'tokenizer: of added tokens the shortest' core/tokenizer.h \
    's/\]\)\.n < w->n|\.n < w->n; at--/.n > w->n; at--/' test_tokenizer alone
fault 'tokenizer: words do not go before merges' core/tokenizer.h \
    's/t->tries_whole \?/0 ?/' test_tokenizer alone
fault 'evaluate: cut sequences one token late' core/evaluate.h \
    's/\(cut - 1\)\) : 0;/(cut - 1)) + 1 : 0;/' test_evaluate alone
fault 'evaluate: an ending without its first token' core/evaluate.h \
    's/cell\[e->context \+ i - 1\]/cell[e->context + i]/' test_evaluate alone
fault 'evaluate: all keys at the beginning' core/evaluate.h 's/filler \* depth/0 * depth/' test_evaluate alone
fault 'evaluate: a label beyond the endings' core/evaluate.h \
    's/one.label >= one.endings \|\| //' test_evaluate alone
fault 'schedule: wsd decays from the warmup on' core/schedule.h \
    's/stable \? s->steps - s->decay_steps : s->warmup/s->warmup/' test_schedule 1
fault 'schedule: a decay one step early' core/schedule.h \
    's/\(double\)\(step - from\)/(double)(step + 1 - from)/' test_schedule 1
fault 'spike: one counts in full' core/spike.h \
    's/off = bound \* sqrt\(w->variance\);/(void)off;/' test_schedule 1
fault 'spike: a level that stays is never the rule' core/spike.h \
    's/^    w->mean \+= share \* off;/    if (off < bound * sqrt(w->variance)) w->mean += share * off;/' test_schedule 1
fault 'decay on norms and biases' core/tensors.h \
    's/return spec->cols != SIZE_1;/return 1;/' test_fixtures 1
fault 'clipping by the squared norm' train_gpt.cu \
    's/s->grad_clip \/ norm : 1/s->grad_clip \/ (norm * norm) : 1/' test_fixtures 1
fault 'Llama 3 frequencies not stretched' core/rope.h \
    's/(low_freq_factor\) return) f \/ s->factor;/\1 f;/' test_fixtures 1
fault 'fused tensors: parts in another order' core/tensors.h \
    's/&specs\[i\] < spec\)/\&specs[i] > spec)/' test_fixtures 1
fault 'fused tensors: parts of one height' core/tensors.h \
    's/before \+= tensor_size\(specs\[i\].rows/before += tensor_size(spec->rows/' test_models 1
fault 'phi3: the length where longrope begins has no default' core/config_json.h \
    's/phi3 \? 4096 : c->max_pos/c->max_pos/' test_models 1
fault "phi3: a checkpoint tells longrope's length inside" core/config_json.h \
    's/c->arch == ARCH_PHI3 \? j : r;/r;/' test_models 1
fault 'products: the first piece of k does not add' kernels/cpu/gemm.h \
    's/add \|\| k > 0\)/k > 0)/' test_kernels 1
fault 'products: a tile at the edge loses a column' kernels/cpu/gemm.h \
    's/j < columns; j\+\+\) c\[/j < columns - 1; j++) c[/' test_kernels 1
fault 'products: a last panel is not filled up' kernels/cpu/gemm.h \
    's/= i < rows \? from\[i \* ld \+ k\] : 0;/= from[0];/' test_kernels 1
fault 'attention: a query sees one key too many' kernels/cpu/attention.h \
    's/p->seen\[c \+ i\] <= j/p->seen[c + i] < j/' test_kernels 1
fault 'attention: a query sees one key before its interval' kernels/cpu/attention.h \
    's/p->from\[c \+ i\] > j/p->from[c + i] > j + 1/' test_kernels 1
fault 'attention: intervals of the first query of a tile for all' kernels/cpu/attention.h \
    's/v.lo\[\(q->first \+ i\) \* v.B\]/v.lo[q->first * v.B]/' test_kernels 1
fault 'attention: a tile that ends where intervals begin is skipped' kernels/cpu/attention.h \
    's/(return p->from\[0\] )</\1+ 1 </' test_kernels 1
fault 'attention: keys end at a panel of queries too early' kernels/cpu/attention.h \
    's/p->from\[end\] < j \+ TILE_ROWS/p->from[end] < j/' test_kernels 1
fault 'attention: keys begin at a panel of queries too late' kernels/cpu/attention.h \
    's/panel_seen\(p, i\) <= j\)/panel_seen(p, i) <= j + 1)/' test_kernels 1
fault 'attention: what a product reads beyond is not cleared' kernels/cpu/attention.h \
    's/^( +for .*panel.end; .*\) )memset\(s \+ j \* PAIR_STEP.*/\1(void)s;/' test_kernels 1
fault 'attention: what a product reads before is not cleared' kernels/cpu/attention.h \
    's/^( +for .*read_begin; .*\) )memset\(s \+ j \* PAIR_STEP.*/\1(void)s;/' test_kernels 1
fault 'attention scaled by another root' kernels/cpu/attention.h \
    's/sqrt/cbrt/' test_fixtures 1
fault 'final norm bias gradient dropped' train_gpt.cu \
    's/dx \+ own, g\[T_NORM\], g\[T_NORM_BIAS\], xn/dx + own, g[T_NORM], NULL, xn/' test_gradients 1
fault 'positions of the embedding gradient' train_gpt.cu \
    's/m->restart \? NULL : g\[T_WPE\], dx/NULL, dx/' test_gradients 1
fault "models: a query norm's gradient passes through" core/blocks.h \
    's/\+ +s->q_raw, 0, n\);|s->q_raw, 0, n\);/normed, 0, n);/' test_models 1
fault "models: values are normed, keys are not" core/blocks.h \
    's/parts_merge\(dev, kv, apart, 2, rows, width\);/(void)0;/' test_models 1
fault 'models: yarn without its magnitude' core/rope.h \
    's/if \(s->kind != ROPE_YARN\) return 1;/return 1;/' test_models 1
fault "models: yarn's ramp ends between pairs" core/rope.h \
    's/if \(!s->exact_ramp\) low/if (0) low/' test_models 1
fault 'models: dynamic scaling forgets how long the sequence is' core/rope.h \
    's/past > 1\) theta/past > 9) theta/' test_models 1
fault 'models: longrope takes the other list' core/rope.h \
    's/L > s->original_max_pos \?/L <= s->original_max_pos ?/' test_models 1
fault 'models: layers without rotation rotate' train_gpt.cu \
    's/layer_in\(&m->config.no_rope, l\) \? NULL : m->rope/m->rope/' test_models 1
fault 'a measured peak stops a run' kernels/cpu/device.h \
    '/^static inline int device_peak_is_stated/,/^}/s/return 0;/return 1;/' test_host 1
fault 'a peak that was given stops nothing' core/rate.h \
    's/s->peak_tflops > 0 \|\|/s->peak_tflops > 1e12 ||/' test_host 1
fault 'the page cache counts as used' core/cgroup.h \
    's/\{"inactive_file ", "active_file ",/{NULL, NULL,/' test_host 1
fault 'only the own group limits' core/cgroup.h \
    's/if \(strlen\(g.group\) <= strlen\(g.mount\) \|\| !slash\) break;/break;/' test_host 1
fault 'a group outside the namespace is looked for beside the mount' core/cgroup.h \
    's/ \&\& !strstr\(path, "\/\.\."\)//' test_host 1
fault 'a group that begins with the same letters' core/cgroup.h \
    's/ \&\& \(path\[n\] == .\/. \|\| path\[n\] == 0\)//' test_host 1
fault 'v1 is not looked at' core/cgroup.h \
    's/k < 2; k\+\+/k < 1; k++/' test_host 1
fault 'a part of a core gives no thread' kernels/cpu/device.h \
    's/ceil\(given\)/floor(given)/' test_host 1
fault 'OpenMP may give less when the host is busy' kernels/cpu/device.h \
    's/^    omp_set_dynamic\(0\);.*//' test_host 1
fault 'a team is taken for granted' kernels/cpu/device.h \
    's/^    granted = omp_get_num_threads\(\);/    granted = threads;/' test_host 1
fault 'a rank of a launcher goes alone' core/launcher.h \
    's/"PMI_", "PMI2_", //' test_host 1
hopper=kernels/cuda/attention_hopper_forward.cuh
fault 'checkpoint: files are not on disk before the manifest' core/save.h \
    's/if \(!troubled\(t\) \&\& fsync\(fd\) != 0\)/if (0)/' test_save alone
fault 'checkpoint: the directory is not on disk before its name' core/save.h \
    's/if \(!troubled\(t\)\) sync_directory\(partial, t\);//' test_save alone
fault 'checkpoint: the name is not on disk' core/save.h \
    's/if \(!troubled\(t\)\) sync_directory\(s->dir, t\);//' test_save alone
fault 'checkpoint: what failed is left lying' core/save.h \
    's/^        remove_directory\(g->partial\);//' test_save alone
fault 'checkpoint: what a crash left is in the way' core/save.h \
    's/^    remove_leftovers\(s\);//' test_save alone
fault 'checkpoint: a torn one is in the way' core/save.h \
    's/if \(!troubled\(t\)\) set_aside\(path, t\);//' test_save alone
fault 'checkpoint: deleted under its name' core/save.h \
    's/if \(rename\(path, deleted\) != 0 \|\| !remove_directory\(deleted\)\)/if (!remove_directory(path))/' \
    test_save alone
fault 'checkpoint: --keep counts torn ones' core/save.h \
    's/kept \+= v->whole;/kept++;/' test_save alone
fault 'checkpoint: --keep deletes torn ones' core/save.h \
    's/if \(!v->whole \|\| kept <= s->keep/if (kept <= s->keep/' test_save alone
fault 'checkpoint: a transposed piece one row too long' core/save.h \
    's/b = row_b - \(c > col_b\)/b = row_b/' test_save alone
fault 'checkpoint: sums are not compared' core/manifest.h \
    's/if \(sum != m->file\[i\]\.sum\)/if (0)/' test_save alone
fault 'checkpoint: sizes are not compared' core/manifest.h \
    's/\(i64\)st\.st_size != f->bytes/0/' test_save alone
fault 'checkpoint: a sum that does not know the place' core/manifest.h \
    's/sum_key\(\(uint64_t\)\(word \/ SUM_BLOCK\)/sum_key((uint64_t)0/' test_save alone
fault 'checkpoint: a newer version is read' core/manifest.h \
    's/else if \(version > MANIFEST_VERSION\)/else if (0)/' test_save alone
fault 'resume: the oldest is taken' core/manifest.h \
    's/return x < y \? 1 : x > y \? -1 : 0;/return x < y ? -1 : x > y ? 1 : 0;/' test_save alone
fault 'resume: a newer whole one is passed over' core/resume.h \
    's/^    if \(resume_newest\(world, s, s->dir/    if (0 \&\& resume_newest(world, s, s->dir/' test_save alone
fault 'checkpoint: a header is trusted unread' core/manifest.h \
    's/if \(f->head \&\& file_part_sum/if (0 \&\& file_part_sum/' test_save alone
fault 'checkpoint: what was loaded is not compared' core/resume.h \
    's/if \(part\[i\]\.sum \+ f->head_sum != f->sum\)/if (0)/' test_save alone
fault 'checkpoint: read on over a gap' core/save.h \
    's/int whole = p->row_step == 1 .*;/int whole = 1;/' test_save alone
fault 'checkpoint: read twice' core/manifest.h \
    's/^        if \(loads \&\& m->file\[i\]\.head\) continue;//' test_save alone
fault 'checkpoint, aside: the thread reads what training goes on with' core/save.h \
    's/\*flat = w->aside\[s->kind\] \? /*flat = 0 ? /' test_save alone
fault 'checkpoint, aside: the copy of v is that of m' core/save.h \
    's/saved_flat\(z, \(SavedKind\)k\), flat \*/saved_flat(z, k == SAVED_V ? SAVED_M : (SavedKind)k), flat */' \
    test_save alone
fault 'resume: moments exchanged' core/resume.h \
    's/\{z->master, z->m, z->v\}/{z->master, z->v, z->m}/' test_save alone
fault 'resume: all is held at once' core/resume.h \
    's/\(size_t\)i64_min\(CHECKPOINT_PIECE, z->flat\)/(size_t)z->flat/' test_save alone
fault 'model: a tensor is held at once' core/checkpoint.h \
    's/i64_min\(n, CHECKPOINT_PIECE\) \* sizeof/n * sizeof/' test_save alone
fault 'shuffle: every epoch alike' core/data.h \
    's/ \^ \(uint64_t\)epoch\)/)/' test_data alone
fault 'shuffle: too few rounds' core/data.h \
    's/round < 6/round < 2/' test_data alone
fault 'shuffle: past the end' core/data.h \
    's/while \(x >= \(uint64_t\)n\)/while (x > (uint64_t)n)/' test_data alone
fault 'mask: of the tokens, not of the targets' core/data.h \
    's/(dataset_mask\(d, sequence, run->first) \+ shift/\1/' test_data alone
fault 'mask: strides are not followed' core/data.h 's/if \(!mask\[i \* stride\]\)/if (!mask[i])/' test_data alone
fault 'mask: of another sequence' core/data.h \
    '/^static inline void dataset_mask/,/^}/s/i64 token = \(sequence - s->first\)/i64 token = (sequence)*0/' \
    test_data alone
fault 'mask: taken for a shard' core/data.h 's/exact \|\| !is_mask\(found.gl_pathv\[i\]\)/1/' test_data alone
fault 'mask: what is ignored by name counts under a mask' core/data.h \
    's/if \(column\[j \* B\] == ignored\)/if (!d->masked \&\& column[j * B] == ignored)/' test_data alone
fault 'metrics: a value is added behind the line that waits' core/log.h \
    's/if \(log->wait\) log->wait\[.*$/if (log->wait) ;/' test_log alone
fault 'metrics: a line that was written in part is written behind that part' core/log.h \
    's/if \(part < 0\) return 0;/if (part < 0) { log->end += done; return 0; }/' test_log alone
emulated 'offload: a copy does not wait for what it copies' kernels/cuda/device.h \
    's/^    CUDA_CHECK\(cudaStreamWaitEvent\(s->copies, s->copies_ready, 0\)\);//' test_transfers
emulated 'offload: what is asked for after a copy does not wait for it' kernels/cuda/device.h \
    's/^    CUDA_CHECK\(cudaStreamWaitEvent\(dev->state.stream, c->done, 0\)\);/    (void)dev, (void)c;/' test_transfers
emulated 'offload: nobody waits for a layer to come back' core/offload.h \
    's/i < o->items; i\+\+\) host_copy_wait\(dev, \&o->back.*/i < 0; i++) ;/' test_transfers
emulated 'offload: a place is taken before its layer is out' core/offload.h \
    's/i < o->items; i\+\+\) host_copy_wait\(dev, \&o->out.*/i < 0; i++) ;/' test_transfers
emulated 'hopper: scores are read before their product is waited for' $hopper \
    's/wgmma_wait<1>/wgmma_wait<2>/' test_cuda_attention small forward wgmma
emulated 'hopper: copies wait for the wrong phase of a stage' $hopper \
    's/(parity = ring_parity<STAGES>\(n\)) \^ 1/\1/' test_cuda_attention small forward wgmma
emulated 'hopper: no fence before the products' $hopper \
    's/^( *)wgmma_fence\(\);/\1/' test_cuda_attention small forward wgmma
emulated 'hopper: V is given back before it was read' $hopper \
    's/wgmma_wait<0>\(\);/wgmma_wait<1>();/' test_cuda_attention small forward wgmma
emulated 'hopper: the largest score of a row is not shared by its lanes' $hopper \
    's/__shfl_xor_sync\(0xffffffffu, x, 2\)/x/' test_cuda_attention small forward wgmma
emulated 'hopper: a group of KV heads reads the first' $hopper \
    's/\) \/ a.group;/) * 0;/' test_cuda_attention small forward wgmma
emulated 'hopper: a stage is free when the first warp is done with it' $hopper \
    's/(mbarrier_init\(t.k_empty \+ i, )T::WARPS/\11/' test_cuda_attention small forward wgmma
emulated 'hopper: a stage is filled before it is free' $hopper \
    's/mbarrier_wait\(t.v_empty \+ s, parity\);//' test_cuda_attention small forward wgmma
emulated 'hopper: strides of a descriptor exchanged' kernels/cuda/attention_hopper.cuh \
    's/ROWS \* 128, 1024, 1\)/1024, ROWS * 128, 1)/' test_cuda_attention small forward wgmma
emulated 'hopper: out does not shrink with the base' $hopper \
    's/if \(grown\) shrink_rows\(out, shrink\);//' test_cuda_attention small forward wgmma
emulated 'hopper: the second group masks as the first' $hopper \
    's/first = tile.position \+ 64 \* group \* tile.stride;/first = tile_last(tile);/' \
    test_cuda_attention small forward wgmma
hopper=kernels/cuda/attention_hopper_backward.cuh
emulated 'hopper: a KV heads copies wait for the wrong phase of a stage' $hopper \
    's/(parity = ring_parity<T::STAGES>\(n\)) \^ 1;/\1;/' test_cuda_attention small wgmma
emulated 'hopper: Q is filled before it is free' $hopper \
    's/mbarrier_wait\(t.empty \+ stage, parity\);//' test_cuda_attention small wgmma
emulated 'hopper: Q is given back before it was read' $hopper \
    's@wgmma_wait<0>\(\); /\* dK@wgmma_wait<2>(); /* dK@' test_cuda_attention small wgmma
emulated 'hopper: Q is free when the first warp is done with it' $hopper \
    's/(mbarrier_init\(t.empty \+ i, )32 \* T::WARPS/\132/' test_cuda_attention small wgmma
emulated 'hopper: products wait for the wrong phase of dO' $hopper \
    's/mbarrier_wait\(t.dout_full \+ stage, parity\);/mbarrier_wait(t.dout_full + stage, parity ^ 1);/' \
    test_cuda_attention small wgmma
emulated 'hopper: dP is read before it was waited for' $hopper \
    's@wgmma_wait<0>\(\); ( *)/\* dP@wgmma_wait<1>();\1/* dP@' test_cuda_attention small wgmma
emulated 'hopper: dQ is read before it was waited for' $hopper \
    's@wgmma_wait<2>\(\); /\* dQ@wgmma_wait<3>(); /* dQ@' test_cuda_attention small wgmma
emulated 'hopper: no fence before the products, backward' $hopper \
    's/^( *)wgmma_fence\(\);/\1/' test_cuda_attention small wgmma
emulated 'hopper: a wrong descriptor of dS' $hopper \
    's/da \+ across_step\(key\)/da + down_step<BN>(key)/' test_cuda_attention small wgmma
emulated 'hopper: dS over the dS before' $hopper \
    's/bf16 \*ds = t.ds \+ stage \* BM \* BN;/bf16 *ds = t.ds;/' test_cuda_attention small wgmma
emulated 'hopper: dS without its proxy fence' $hopper \
    '/ds_store<BN/,/named_barrier_sync/s/proxy_fence\(\);//' test_cuda_attention small wgmma
emulated 'hopper: dS is not waited for' $hopper \
    's/named_barrier_sync\(DS_WRITTEN, [^)]*\);//' test_cuda_attention small wgmma
emulated 'hopper: dQ without its proxy fence' $hopper \
    '/dq_store<BM/,/warp_arrive/s/proxy_fence\(\);//' test_cuda_attention small wgmma
emulated 'hopper: dQ over the dQ before' $hopper \
    's/mbarrier_wait\(t.dq_empty \+ stage.*//' test_cuda_attention small wgmma
emulated 'hopper: a turn ends before its sum is there' $hopper \
    's/bulk_wait<0>\(\);//' test_cuda_attention small wgmma
emulated 'hopper: a sum does not wait for its turn' $hopper \
    's/^( *)counter_wait\(turn, LO.*;/\1/' test_cuda_attention wgmma
emulated 'hopper: the last turn does not wait' $hopper \
    's/counter_wait\(turn_of\(a, b.head \+ h, i\), .*;/(void)0;/' test_cuda_attention wgmma
emulated 'hopper: the first turn adds to nothing' $hopper \
    's/if \(turn_first.* \&\& !a.add\)$/if (0)/' test_cuda_attention small wgmma
emulated 'hopper: blocks that trust blockIdx' $hopper \
    's/backward_block<BM, BN>\(p.a, atomicAdd\(p.a.tickets, 1\)\)/backward_block<BM, BN>(p.a, (int)blockIdx.x)/' \
    test_cuda_attention small wgmma
emulated 'cuda: 48 KB of shared memory are not asked for' kernels/cuda/cuda.h \
    's/> 32 \* 1024\)/> 48 * 1024)/' test_cuda_attention small sm_80
emulated 'cuda: a barrier is missing' kernels/cuda/attention_forward.cuh \
    's@__syncthreads\(\); /\* V\(j\).*@@' test_cuda_attention small sm_80
emulated 'cuda: another swizzle on one side' kernels/cuda/attention_backward.cuh \
    's/int first = swizzle<COLS>\(row, col\);/int first = swizzle<COLS>(row + 1, col) - COLS;/' \
    test_cuda_attention small sm_80
emulated 'cuda: rows not swizzled: right, but in the same banks' kernels/cuda/attention.cuh \
    's/\(\(\(col >> 3\) \^ \(row \& 7\)\) << 3\)/(col >> 3 << 3)/' test_cuda_attention small sm_80
emulated 'cuda: a copy is not waited for' kernels/cuda/attention_forward.cuh \
    's/cp_async_wait<0>\(\);//' test_cuda_attention small sm_80
emulated 'cuda: what was summed does not shrink with the base' kernels/cuda/attention_forward.cuh \
    's/sum\[m\]\[half\] \*= shrink;//' test_cuda_attention small sm_80
emulated 'cuda: a base that is never raised' kernels/cuda/attention_forward.cuh \
    's/top\[m\]\[half\] \+ 8;/top[m][half] + 1e9f;/' test_cuda_attention small sm_80
emulated 'cuda: a sum of gradients rounded before its last turn' kernels/cuda/attention_backward.cuh \
    's/step->last \&\& a.dq_rounded/a.dq_rounded/' test_cuda_attention small sm_80
emulated 'cuda: queries that see nothing keep what was there' kernels/cuda/attention_backward.cuh \
    's/i < steps\[n % STEPS\].h/i < 0/' test_cuda_attention small sm_80
emulated 'cuda: attention takes all registers before a transfer has begun' kernels/cuda/attention.cuh \
    's/if \(dev->state.transfer\)/if (0)/' test_cuda_attention small
emulated 'transfers: attention waits for the newest to begin, and so for the older to end' core/transfer_cuda.h \
    '/flights\+\+\] = t;/{n;s/l->flying\[0\]/t/}' test_transfers
emulated 'transfers: what waits behind work counts as under way' core/transfer_cuda.h \
    's/ && cudaEventQuery\(t->begun\) != cudaErrorNotReady//' test_transfers
fault 'zero: a share is rounded up on a CPU, too' core/zero.h \
    's/real_is_accum\(\) \? 1 :/0 ? 1 :/' test_memory 1
fault 'zero: a share begins anywhere, between GPUs, too' core/zero.h \
    's/real_is_accum\(\) \? 1 :/1 ? 1 :/' test_simulator 1
fault 'zero: the closed form knows no 16 bytes' core/zero.h \
    's/\(S - 1\) \* shard_elements/(S - 1) * ceil_div/' test_simulator 1
emulated 'cuda: a divider rounded down' kernels/cuda/reduce.cuh \
    's/ \+ \(uint64_t\)by - 1\)/)/' test_cuda_ops
emulated 'cuda: every row of a thread gets the first position' kernels/cuda/embedding.cuh \
    's/k > 0 \&\& t == at/k > 0/' test_cuda_ops
emulated 'cuda: buckets of a warp begin at one place' kernels/cuda/embedding.cuh \
    's/at\[0\] - count/at[0] - ends[0]/' test_cuda_ops
emulated 'cuda: shared KV heads, one copy left out' kernels/cuda/heads.cuh \
    's/i64 p = 1; p < route/i64 p = 2; p < route/' test_cuda_ops
emulated 'cuda: a tail one short' kernels/cuda/reduce.cuh \
    's/i < left \? bf16_float/i < left - 1 ? bf16_float/' test_cuda_ops
emulated 'cuda: the order of sums in dq not kept' kernels/cuda/attention_backward.cuh \
    's/counter_wait\(/if (0) counter_wait(/' test_cuda_attention sm_80
emulated 'cuda: blocks that trust blockIdx to be the order of starts' kernels/cuda/attention_backward.cuh \
    's/\*ticket = atomicAdd\(a.tickets, 1\);/*ticket = (int)blockIdx.x;/' test_cuda_attention small sm_80
emulated 'hopper: static arrays beside all the dynamic shared memory' $hopper \
    's/^    T t = T::make\(\);/&\n    SHARED(float, more, 9216);\n    more[threadIdx.x] = 0;/' \
    test_cuda_attention small forward wgmma
emulated 'cuda: keys at an offset of 32 bits' kernels/cuda/attention_forward.cuh \
    's/\(i64\)next.first \* a.kv_step/next.first * a.kv_step/' test_cuda_attention small sm_80
emulated 'cuda: results at an offset of 32 bits' kernels/cuda/attention_forward.cuh \
    's/\(i64\)(tile.first \* a.rows \+ head), tile.count/(unsigned)(\1) * (unsigned)@head, tile.count/;
     s/@head/a.head_dim \/ (unsigned)a.head_dim/' test_cuda_attention small sm_80
emulated 'cuda: queries at an offset of 32 bits, backward' kernels/cuda/attention_backward.cuh \
    's/from \+ s->row \* a.head_dim/from + (unsigned)s->row * a.head_dim/' test_cuda_attention small sm_80
emulated 'interval: lo off by one' kernels/cuda/attention_forward.cuh \
    's/if \(8 \* n \* kv.stride < begin\)/if (8 * n * kv.stride <= begin)/' test_cuda_attention small masks sm_80
emulated 'interval: a tile that is seen up to its last key alone is skipped' kernels/cuda/attention.cuh \
    's@(position - m.first\[r\]) - 1\) / m.stride\[r\] \+ 1@\1) / m.stride[r] + 1@' \
    test_cuda_attention small masks forward
emulated 'interval: a tile whose first key alone is not seen is not masked' kernels/cuda/attention_forward.cuh \
    's/LO \&\& kv.position < \*most/LO \&\& kv.position + 1 < *most/' test_cuda_attention small masks forward sm_80
emulated 'interval: the same of a warpgroup' kernels/cuda/attention_hopper_forward.cuh \
    's/LO \&\& kv.position < most/LO \&\& kv.position + 1 < most/' test_cuda_attention small masks forward wgmma
emulated 'interval: the second warpgroup masks as the first' kernels/cuda/attention_hopper_forward.cuh \
    's/most = row_lo\(lo, tile, 64 \* group \+ 63\)/most = row_lo(lo, tile, 63)/' \
    test_cuda_attention small masks forward wgmma
emulated 'interval: the lo of the first sequence' kernels/cuda/attention.cuh \
    's/AttentionLo l = \{lo \+ sequence,/AttentionLo l = {lo + 0 * sequence,/' test_cuda_attention small masks forward
emulated 'interval: no tile is skipped' kernels/cuda/attention_forward.cuh \
    's/first = tiles_before<BN>.*/first = 0;/' test_cuda_attention small masks forward sm_80
emulated 'interval: no tile is skipped on sm_90a' kernels/cuda/attention_hopper_forward.cuh \
    's/item.low = tiles_before<BN>.*/item.low = 0;/' test_cuda_attention small masks forward wgmma
emulated 'interval, backward: a tile that sees one key is skipped' kernels/cuda/attention_backward.cuh \
    's/, row\) <= position/, row) < position/' test_cuda_attention small masks
emulated 'interval, backward: tiles of another document are computed' kernels/cuda/attention_backward.cuh \
    's/^( *)span->from\[which\]\[run\] = from;/\1span->from[which][run] = which ? from : run ? a.q_tiles : @first;/;
     s/@first/a.q_map.tiles[0]/' test_cuda_attention small masks
emulated 'interval, backward: only the first row of a tile tells whether it is masked' \
    kernels/cuda/attention_backward.cuh 's/which == SPAN_CUT \? BM - 1 : 0/0/' test_cuda_attention small masks
emulated 'interval, backward: the first turn passes the counter on by one' kernels/cuda/attention_backward.cuh \
    's/\? j \+ 1 : 1/? 1 : 1/' test_cuda_attention small masks sm_80
emulated 'interval, backward: the same on sm_90a' kernels/cuda/attention_hopper_backward.cuh \
    's/\? b.j \+ 1 : 1/? 1 : 1/' test_cuda_attention small masks wgmma
emulated 'interval, backward: the first turn waits for KV tiles that nobody sees' kernels/cuda/attention_backward.cuh \
    's/step, j\) \? 0 : j/step, j) ? j : j/' test_cuda_attention small masks sm_80
emulated 'interval, backward: the first turn is that of KV tile 0' kernels/cuda/attention_backward.cuh \
    's/step_first<LO>\(a, span, step, j\) \&\& !a.add/j == 0 \&\& !a.add/' test_cuda_attention small masks sm_80
emulated 'interval, backward: turns are not waited for' kernels/cuda/attention_hopper_backward.cuh \
    's/counter_wait\(turn, LO.*;//' test_cuda_attention masks wgmma
emulated 'interval, backward: from the second run on to a tile of the first that does not see it' \
    kernels/cuda/attention_backward.cuh \
    's/return i >= a.q_map.tiles\[0\] \? i : min\(.*/return i;/' test_cuda_attention small masks
emulated 'interval, backward: queries that see nothing keep what was there' kernels/cuda/attention_backward.cuh \
    's/for \(int i = j; i < a.q_tiles/for (int i = j; i < 0/' test_cuda_attention small masks
emulated 'interval, backward: one key too many is hidden' kernels/cuda/attention_hopper_backward.cuh \
    's@\(hidden - 1\) / kv.stride \+ 1@hidden / kv.stride + 1@' test_cuda_attention small masks wgmma
emulated 'interval, backward: the first keys of the stage before' kernels/cuda/attention_hopper_backward.cuh \
    's/t.begin \+ stage \* BM \+ group_col/t.begin + group_col/' test_cuda_attention small masks wgmma
emulated 'hopper: another swizzle than the copy has' kernels/cuda/attention_hopper.cuh \
    's/wgmma_descriptor\(tile, 16, 1024, 1\)/wgmma_descriptor(tile, 16, 1024, 2)/' \
    test_cuda_attention small forward wgmma
emulated 'hopper: an mbarrier that the copies do not know' kernels/cuda/attention_hopper_forward.cuh \
    's/mbarrier_init_fence\(\);//' test_cuda_attention small forward wgmma
trained 'interval: CUDA kernels that do not get it' kernels/cuda/attention_forward.cuh \
    's/a.lo = c.lo/a.lo = NULL/' EMU_STREAMS=0 1 --doc-mask --eot 32 --selfcheck off
trained 'cuda: a transfer overwrites what is still read' core/transfer_cuda.h \
    's/^ *CUDA_CHECK\(cudaStreamWaitEvent\(l->stream, l->ready, 0\)\);//' EMU_STREAMS=1 4 --sp tpsp
trained 'cuda: the host takes work under way for done' kernels/cuda/device.h \
    's/while \(\((state = cudaStreamQuery\(dev->state.stream\))\) == cudaErrorNotReady\).*/if ((\1) == @not/;
     s/@not/cudaErrorNotReady) state = cudaSuccess;/' \
    EMU_STREAMS=0 2 --sp ulysses
trained 'nccl: shards that begin anywhere' core/zero.h \
    's/( c\.shard = .*);$/\1 | 1;/' EMU_STREAMS=0 2 --sp ulysses
trained 'nccl: a world that lets no group share its buffers' core/transfer_cuda.h \
    's/^( *)NCCL_CHECK\(ncclCommInitRankConfig/\1config.splitShare = 0;\n&/' EMU_STREAMS=0 4 --sp ulysses --ring 2
trained 'nccl: memory is counted before NCCL has taken its own' train_gpt.cu \
    '/^ *mesh_try\(.*\);$/{h;d};/^ *check_memory\(&t->model, .*\);$/{G}' \
    'EMU_MEMORY=700 EMU_NCCL_MEMORY=150' 2 --sp ulysses
trained 'graphs: the host waits within a micro-step' train_gpt.cu \
    's/^ *m->offload.active = train;/& device_finish(\&m->dev);/' EMU_STREAMS=0 1 --graphs on
trained 'graphs: the walk that is recorded is another' core/graphs.h \
    's/^    walk\(m, scale\);/    walk(m, 2 * scale);/' EMU_STREAMS=0 1 --graphs on
emulated 'graphs: a capture that permits what CUDA does not' dev/emu/runtime.h \
    's/if \(g->spoiled\) return/if (false) return/' test_emulator
emulated 'graphs: operations run before others that they wait for' dev/emu/runtime.h \
    's/ready = ready \&\& done\[before\]/ready = ready || done[before]/' test_emulator
emulated 'emulator: streams that only run late' dev/emu/runtime.h \
    's/if \(emu_runs_early\(s\)\) emu_drain\(s, nullptr\);//' test_emulator
emulated 'emulator: work that is always done when asked for' dev/emu/runtime.h \
    '/bool emu_not_ready/,/^}/s/return emu_coin.*;/return false;/' test_emulator
emulated 'emulator: a copy of the host that waits for all streams' dev/emu/runtime.h \
    's/if \(s->blocking\) emu_drain/emu_drain/' test_emulator
emulated 'emulator: blocks in the order of blockIdx' dev/emu/emu.h \
    's/only\.empty\(\) \? emu_ordered\(order, turn\)/only.empty() ? turn/' test_emulator
emulated 'emulator: static and dynamic shared memory apart' dev/emu/emu.h \
    's/if \(all > \(size_t\)emu_shared_most\(\)\)/if (0)/' test_emulator
emulated 'emulator: sums alike whatever the shape' dev/emu/cublasLt.h \
    's/int64_t first = k \? .* : 0;/int64_t first = 0;/' test_cuda_gemm
emulated 'emulator: tensor cores that round' dev/emu/ptx.h \
    's/^ *all = \(EmuDoubles\)\(\(EmuLongs\)all \& .*;//' test_emulator
emulated 'emulator: tensor cores that keep all bits of a term' dev/emu/ptx.h \
    's/bits = hopper \? 25 : 24;/bits = 27;/' test_emulator
emulated 'emulator: exact powers' dev/emu/ptx.h \
    's/ - 2 \+ emu_hash\(x\) % 5\)/)/' test_emulator
caught 'self-check: attention exchange skipped' ring.h \
    '0,/kv = arriving;/s//kv = s->kv;/' \
    'self-check: token [0-9]+ of sequence 0 reached [0-9]+ of the' 4 --sp ring --selfcheck on
caught 'self-check: a hop of the ring is lost, and the layers above make up for it' ring.h \
    '0,/if \(visitor_seen\(m, s, hop\)\)/s//if (visitor_seen(m, s, hop) \&\& hop != 2)/' \
    'self-check: token [0-9]+ of sequence 0 reached [0-9]+ of the' 4 --sp ring --ring-layout contiguous
caught 'self-check: allgather of keys is skipped' allgather.h \
    's/return g->room\[at->piece % 2\].*/return s->kv;/' \
    'self-check: token [0-9]+ of sequence 0 reached [0-9]+ of the' 4 --sp allgather --selfcheck on
caught 'self-check: one sender of an all-to-all is lost' ulysses.h \
    's/^    attend\(m, \&v\);/    zero_fill(\&m->dev, v.kv, ulysses_kv_part(m) * real_size());\n&/' \
    'self-check: token [0-9]+ of sequence 0 reached [0-9]+ of the' 4 --sp ulysses
caught 'self-check: a norm looks at the next row' kernels/cpu/norm.h \
    's/(x, row_mean, rstd\[r\])(, n.weight)/\1 * (1 + (delta || r + 1 == rows ? 0 : x[C]))\2/' \
    'self-check: changing token [0-9]+ of sequence 0 moved position' 1 --selfcheck on
caught 'self-check: all-gather into attention skipped' tpsp.h \
    's/e\.gathered, x, own_rows/e.gathered, e.gathered, own_rows/' \
    'self-check: token [0-9]+ of sequence 0 reached 0 of the' 4 --selfcheck on
caught 'self-check: the mask lets a token see its successor' kernels/cpu/attention.h \
    's/(kv->run.count, distance) \+ 1\);/\1 + 2);/' \
    'self-check: changing token [0-9]+ of sequence 0 moved position' 1 --selfcheck on
caught 'self-check: a window is forgotten in one layer' train_gpt.cu \
    's/sight\[sight_kind\(\&m->config, m->L, l\)\]/sight[l == 3 ? 0 : sight_kind(\&m->config, m->L, l)]/' \
    'self-check: changing token [0-9]+ of sequence 0 moved position' 1 --selfcheck on --window 40
caught 'self-check: a window of one key too few' core/visible.h \
    's/p - s->window \+ 1 : 0/p - s->window + 2 : 0/' \
    'self-check: token [0-9]+ of sequence 0 reached [0-9]+ of the' 4 --sp ring --window 9
caught 'self-check: a window of one key too many' kernels/cpu/attention.h \
    's/(v.lo \? v.lo\[.*\]) - kv/\1 - 1 - kv/' \
    'self-check: changing token [0-9]+ of sequence 0 moved position' 2 --sp ulysses --window 9
caught 'self-check: documents see the end of the one before' kernels/cpu/attention.h \
    's/(v.lo \? v.lo\[.*\]) - kv/\1 - 1 - kv/' \
    'self-check: changing token [0-9]+ of sequence 0 moved position' 4 --doc-mask --eot 10 --selfcheck on
caught 'self-check: labels shifted after the split' train_gpt.cu \
    "$SHIFTED" 'self-check: the targets are not the next tokens' 4 --selfcheck on
caught 'self-check: a rank plans another branch' ulysses.h \
    's/if \(m->mesh.head.size == 1\) \{/if (m->mesh.head.size == 1 || (m->mesh.rank == 2 \&\& s == \&m->attention[1])) {/' \
    'the ranks do not plan the same step: as collective [0-9]+, rank 2 has .*\((attention|mlp),' 4 --sp ulysses
caught 'schedule: a rank takes another branch in the run' ulysses.h \
    's/if \(m->mesh.head.size == 1\) \{/if (m->mesh.head.size == 1 || (m->mesh.rank == 2 \&\& !m->dev.plan)) {/' \
    'this rank has taken another branch than the plan .rank 2' 4 --sp ulysses --selfcheck off
caught 'a rate above the peak' core/rate.h \
    's/double peak = p->flops/double peak = 1e-9 * p->flops/' 'times the peak' 2 --peak-tflops 1
misread 'pages: a dead link' README.md 's#docs/running\.md#docs/runing.md#' README.md 'README.md: links'
misread 'pages: a scheme without its row' README.md 's/^. `allgather` .*//' docs/design.md \
    'every scheme has a row'
misread 'pages: one that is not listed' docs/README.md 's/evaluating\.md/data.md/' docs/design.md \
    'lists every page'
misread 'pages: a heading that has gone' docs/gpus.md 's/^## Check a machine/## Try a machine/' docs/testing.md \
    'testing.md: links'
misread 'pages: a flag that nobody knows' docs/running.md 's/`--on-spike`/`--on-spikes`/' docs/running.md \
    'running.md: flags'
misread 'pages: an old page of flags' docs/flags.md 's/in a sequence, L, over all ranks \[256\]/& or so/' docs/flags.md \
    'flags.md is what --help prints'
misread 'pages: a file that has gone' docs/testing.md 's/test_gradients\.c/test_gradient.c/' docs/testing.md \
    'testing.md: files and targets'
misread 'pages: a command that is refused' docs/data.md 's/--seq-len 32 /--seq-len 33 /' docs/data.md \
    'data.md:[0-9]+: mpirun'
misread 'pages: a run for GPUs that is refused' docs/gpus.md 's/--dp 2 --batch 8/--dp 3 --batch 8/' docs/gpus.md \
    'gpus.md:[0-9]+: not run, needs Slurm'
misread 'pages: an output that has changed' docs/data.md 's/18,720 tokens/18,721 tokens/' docs/data.md \
    'data.md:[0-9]+: python3'
misread 'pages: a command among text' docs/running.md 's/^s < W  /$ make\n&/' docs/running.md 'running.md: blocks'
misread 'pages: a block without a language' docs/design.md '0,/^```text/s//```/' docs/design.md 'design.md: blocks'
misread 'pages: no reason why a block is not run' docs/checkpoints.md 's/not run: takes hours/not run: boring/' \
    docs/checkpoints.md 'checkpoints.md:[0-9]+: not run'
misread 'pages: code that has changed' CONTRIBUTING.md 's/i64_max\(1, c->kv_heads/i64_max(2, c->kv_heads/' \
    CONTRIBUTING.md 'CONTRIBUTING.md: code'
misread 'pages: an old picture' docs/pictures/ring.svg 's/dKV/dVK/' docs/design.md 'pictures are what'
misread 'pages: a paper with a wrong digit' CITATION.cff 's/2310\.01889/2310.01899/' docs/design.md 'CITATION.cff'
misread 'pages: a README that grows' README.md '$a\'"$(printf '%08192d' 0)" docs/design.md 'README.md has'
}
echo "1..$n"
exit $((failed > 0))
