#!/usr/bin/env bash
# registers.sh FILE - what ptxas -v said of every kernel: registers, shared memory, spills, as a table; exit code 1 if
# ptxas lets wgmma instructions wait for each other, or if a kernel spills registers to local memory on sm_80, sm_90 or
# sm_90a, for which the kernels are written, and is not listed below with the reason.
set -euo pipefail

# kernel (a part of its mangled name), most bytes stored, why that is left
LISTED='
attention_backward_kernelILi128ELi64ELi128E 96 nvcc 13.0: none; at 255 registers another ptxas may store sums
attention_backward_kernelILi64ELi128ELi128E 96 likewise
attention_forward_kernelILi128ELi128ELi64E 32 likewise
attention_forward_kernelILi64ELi128ELi128E 32 likewise
'

awk -v listed="$LISTED" '
    BEGIN {
        n = split(listed, rows, "\n")
        for (i = 1; i <= n; i++) if (split(rows[i], word, " ") > 2) { k++; name[k] = word[1]; most[k] = word[2] }
        printf "%-7s %5s %7s %6s %6s  %s\n", "arch", "regs", "shared", "stores", "loads", "kernel"
    }
    /wgmma.mma_async instructions are serialized/ { bad = bad $0 "\n" }
    /Compiling entry function/ { split($0, q, "\x27"); kernel = q[2]; arch = q[4] }
    /bytes stack frame/ {
        for (i = 1; i <= NF; i++) {
            if ($(i + 1) == "bytes" && $(i + 2) == "spill" && $(i + 3) ~ /^stores/) stores = $i
            if ($(i + 1) == "bytes" && $(i + 2) == "spill" && $(i + 3) ~ /^loads/) loads = $i
        }
    }
    /Used [0-9]+ registers/ && kernel != "" {
        shared = 0
        for (i = 1; i <= NF; i++) {
            if ($(i + 1) ~ /^registers/) regs = $i
            if ($(i + 1) == "bytes" && $(i + 2) ~ /^smem/) shared = $i
        }
        printf "%-7s %5d %7d %6d %6d  %s\n", arch, regs, shared, stores, loads, kernel
        if (stores + loads > 0) {
            ok = arch != "sm_80" && arch != "sm_90" && arch != "sm_90a"
            for (j = 1; j <= k; j++) if (index(kernel, name[j]) && stores <= most[j]) ok = 1
            listing = "%s on %s spills %d bytes and is not listed in dev/registers.sh\n"
            if (!ok) bad = bad sprintf(listing, kernel, arch, stores)
        }
        kernel = ""; kernels++
    }
    END {
        if (!kernels) bad = "no kernel in the output of ptxas\n"
        if (bad != "") { printf "error: %s", bad > "/dev/stderr"; exit 1 }
    }' "$1"
