# make                  what this machine can build, after saying what it found and what is missing
# make train_gpt_cpu    fp32 on CPU ranks (MPI, OpenMP)
# make train_gpt_fp64   every real is a double: the referee
# make train_gpt        bf16 on GPUs (CUDA toolkit, MPI): sm_80 and sm_90a, and PTX for what comes after
# make train_gpt_emu    the same program on the CPU, under the emulator of dev/emu: for tests
# make build/bench_cuda what this GPU does at best, and what each kernel gets of it (dev/gpu_check.sh)
# make tests            dev/test/test_*.c -> build/test_*_fp32, build/test_*_fp64 (scripts/test.sh runs them)
# make docs             docs/flags.md from --help, pictures, and outputs that pages show
# make check-cxx        the same sources read as C++20, both precisions
# make build/fuzz      dev/test/fuzz.c with clang's libFuzzer (scripts/test.sh --long runs it)
# make clean
#
# OPT="-O3 -march=x86-64-v3" in the environment or on the command line builds everything, tests and emulator included,
# for that machine; another OPT, compiler, processor or library than last time builds again what is asked for.
# BUILD=build/v3 keeps such a build beside the first one: build/v3/train_gpt_cpu.
#
# WERROR=1, which the tests set, makes every warning an error; without it a compiler that nobody has tried still builds.
#
# One translation unit per binary: a program or test includes all that it uses; -MMD tells make what that was.

MPICC = mpicc
MPICXX = mpicxx
OPT ?= -O3 $(NATIVE)
FATAL = $(if $(WERROR),-Werror)
BUILD = build
CFLAGS = -std=c11 $(OPT) -fopenmp -fno-math-errno -fno-trapping-math -ffp-contract=fast -D_GNU_SOURCE \
	-Wall -Wextra -Wc++-compat $(FATAL) $(CLANG)
CXXFLAGS = -std=c++20 -fopenmp -fsyntax-only -D_GNU_SOURCE -Wall -Wextra $(FATAL) -DOMPI_SKIP_MPICXX -DMPICH_SKIP_MPICXX
COMPILE = $(MPICC) -x c $(CFLAGS) -MMD -MP -MF $(BUILD)/$(@F).d $< -o $@
SIMCOMPILE = $(CPP) -x c $(filter-out -m%,$(CFLAGS)) -ffp-contract=off -DODYSSEUS_SIM -DODYSSEUS_NO_MPI \
	-MMD -MP -MF $(BUILD)/$(@F).d $< -o $@ -lcjson -lm
FP32 = -lcjson -lm
FP64 = -DODYSSEUS_FP64 -lcjson -lm

# The CUDA program, by nvcc: a kernel that spills registers is an error (dev/registers.sh; its table stands in
# build/registers_*.txt).
NVCC = $(or $(shell command -v nvcc 2>/dev/null),$(wildcard /usr/local/cuda/bin/nvcc))
# 90a: sm_90 with its own instructions (wgmma, setmaxnreg), for attention_hopper*.cuh; PTX of 90 serves what comes
# later, PTX of 90a would not
CUDA_ARCHS = 80 90a
NEWEST = $(patsubst %a,%,$(lastword $(CUDA_ARCHS)))
NVPTX = -gencode arch=compute_$(NEWEST),code=compute_$(NEWEST) $(if $(filter 90a,$(CUDA_ARCHS)),-DODYSSEUS_HOPPER)
NVCCFLAGS = -std=c++20 -O3 -DODYSSEUS_CUDA -D_GNU_SOURCE $(if $(WERROR),-Werror all-warnings -Xcompiler -Werror) \
	-Xcompiler -Wall,-Wextra,-Wno-unused-function,-fopenmp \
	-Xptxas -v $(foreach a,$(CUDA_ARCHS),-gencode arch=compute_$(a),code=sm_$(a)) $(NVPTX) --threads 0
MPIFLAGS = $(if $(MPI),$(shell $(MPICXX) --showme:compile 2>/dev/null) -DOMPI_SKIP_MPICXX,-DODYSSEUS_NO_MPI)
MPILIBS = $(if $(MPI),$(foreach f,$(shell $(MPICXX) --showme:link 2>/dev/null),\
	$(if $(filter -Wl% -pthread,$(f)),-Xcompiler $(f),$(f))))
# CUDA's libraries by their headers: the toolkit's, else the system's, else those of Python's CUDA packages, else where
# the compiler looks. The program remembers the folder it was linked with (RUNPATH), and so starts without
# LD_LIBRARY_PATH.
TOOLKIT = $(patsubst %/bin/nvcc,%,$(realpath $(NVCC)))
CUDA_MAJOR = $(shell $(NVCC) --version 2>/dev/null | sed -n 's/.*release \([0-9]*\).*/\1/p')
SYSTEM = /usr /usr/local
PYCUDA = $(shell python3 -c 'import nvidia; print(*nvidia.__path__)' 2>/dev/null)
# of CUDA 12, Python's packages have a folder a library; of later ones they share one
PYCUBLAS = $(PYCUDA:%=%/$(if $(filter 12,$(CUDA_MAJOR)),cublas,cu$(CUDA_MAJOR)))
CUBLAS = $(firstword $(wildcard $(addsuffix /include/cublasLt.h,$(TOOLKIT) $(SYSTEM) $(PYCUBLAS))) \
	$(shell echo '\#include <cublasLt.h>' | $(NVCC) -E -x cu - >/dev/null 2>&1 && echo cublasLt.h))
NCCL = $(firstword $(wildcard $(addsuffix /include/nccl.h,$(TOOLKIT) $(SYSTEM) $(PYCUDA:%=%/nccl))) \
	$(shell echo '\#include <nccl.h>' | $(NVCC) -E -x cu - >/dev/null 2>&1 && echo nccl.h))
# of a library and its header: what finds the header, then the library
cuda_library = $(call cuda_folder,$(1),$(patsubst %/include/,%,$(dir $(2))))
cuda_folder = $(if $(filter-out ./ $(TOOLKIT) $(SYSTEM),$(2)),-I$(2)/include) \
	$(call cuda_file,$(1),$(firstword $(wildcard \
	$(foreach l,lib64 lib,$(2)/$(l)/lib$(1).so $(2)/$(l)/lib$(1).so.*))))
cuda_file = $(if $(2),-L$(patsubst %/,%,$(dir $(2))) -l:$(notdir $(2)) \
	-Xlinker -rpath -Xlinker $(patsubst %/,%,$(dir $(2))),-l$(1))
CUBLASFLAGS = $(call cuda_library,cublasLt,$(CUBLAS))
NCCLFLAGS = $(if $(and $(NCCL),$(MPI)),-DODYSSEUS_NCCL $(call cuda_library,nccl,$(NCCL)))
NVEND = 2>$(BUILD)/ptxas_$(@F).txt || { grep -v '^ptxas info\|bytes stack frame' $(BUILD)/ptxas_$(@F).txt; false; }
define NVCOMPILE
$(NVCC) -x cu $(NVCCFLAGS) $(MPIFLAGS) -MMD -MP -MF $(BUILD)/$(@F).d $< -o $@ \
	$(MPILIBS) $(CUBLASFLAGS) $(NCCLFLAGS) -lcjson $(NVEND)
@bash dev/registers.sh $(BUILD)/ptxas_$(@F).txt >$(BUILD)/registers_$(@F).txt
endef
# kernels alone: neither MPI nor cJSON
define NVKERNELS
$(NVCC) -x cu $(NVCCFLAGS) -MMD -MP -MF $(BUILD)/$(@F).d $< -o $@ $(CUBLASFLAGS) $(NVEND)
@bash dev/registers.sh $(BUILD)/ptxas_$(@F).txt >$(BUILD)/registers_$(@F).txt
endef

# The CUDA program on the CPU: a C++ compiler sees the same sources, and the emulator where the CUDA toolkit would be.
EMUFLAGS = -std=c++20 -fopenmp -D_GNU_SOURCE -DODYSSEUS_CUDA -DODYSSEUS_HOPPER -DODYSSEUS_NCCL \
	-DOMPI_SKIP_MPICXX -DMPICH_SKIP_MPICXX -Wall -Wextra $(FATAL) \
	-Wno-unused-function -Wno-deprecated-enum-enum-conversion -Wno-psabi
EMUCOMPILE = $(MPICXX) -x c++ -Idev/emu $(EMUFLAGS) $(filter -m% -D%,$(OPT)) -MMD -MP -MF $(BUILD)/$(@F).d $< -o $@

TESTS = $(filter-out $(BUILD)/test_simulator,$(patsubst dev/test/%.c,$(BUILD)/%,$(wildcard dev/test/test_*.c)))

# ---- what is here: the name of a thing, or nothing ----

have = $(shell command -v $(1) 2>/dev/null)
CPP := $(firstword $(foreach cc,$(MPICC) gcc cc,$(if $(call have,$(cc)),$(cc))))
# a loop that clang does not vectorize is no fault
CLANG := $(if $(findstring clang,$(if $(CPP),$(shell $(CPP) --version 2>/dev/null))),-Wno-pass-failed)
# this very processor, in the words of this compiler
NATIVE := $(if $(CPP),$(firstword $(foreach f,-march=native -mcpu=native,\
	$(shell $(CPP) $(f) -E -x c - </dev/null >/dev/null 2>&1 && echo $(f)))))
header = $(if $(CPP),$(shell echo '\#include <$(1)>' | $(CPP) -E -x c - >/dev/null 2>&1 && echo $(1)))
MPI := $(and $(call have,$(MPICC)),$(call header,mpi.h))
CJSON := $(call header,cjson/cJSON.h)
OMP := $(call header,omp.h)

NO_NCCL = missing: apt-get install libnccl-dev from NVIDIA's repository - ranks will be staged through MPI
NO_MPI = missing: apt-get install libopenmpi-dev openmpi-bin - one rank only

# gcc comes with its OpenMP
MISSING_sim = $(if $(CJSON),,libcjson-dev) $(if $(OMP),,libomp-dev)
MISSING_cpu = $(if $(MPI),,libopenmpi-dev openmpi-bin) $(MISSING_sim)
MISSING_cuda = $(if $(CJSON),,libcjson-dev)
NO_NVCC = needs the CUDA toolkit, 12.0 or later: nvcc is not in PATH, nor in /usr/local/cuda/bin
OLD_NVCC = needs the CUDA toolkit, 12.0 or later: $(NVCC) is of $(CUDA_MAJOR)
NO_CUBLAS = needs cuBLAS, without which $(TOOLKIT) came: apt-get install libcublas-dev from NVIDIA's repository, \
	or pip install nvidia-cublas
need_cuda = $(if $(CUDA_LACKS),$(error $@ $(CUDA_LACKS)))
CUDA_LACKS = $(if $(NVCC),$(if $(filter 8 9 10 11,$(CUDA_MAJOR)),$(OLD_NVCC),$(if $(CUBLAS),,$(NO_CUBLAS))),$(NO_NVCC))
need = $(if $(strip $(MISSING_$(1))),$(error $@ needs packages that are not installed: \
	apt-get install build-essential $(strip $(MISSING_$(1)))))
CAN = $(if $(strip $(MISSING_cpu)),,train_gpt_cpu train_gpt_fp64) $(if $(and $(CPP),$(CJSON)),train_gpt_sim) \
	$(if $(CJSON),$(if $(CUDA_LACKS),,train_gpt))

# ---- targets ----

all:
	@echo "MPI     $(if $(MPI),$(call have,$(MPICC)),missing: apt-get install build-essential libopenmpi-dev openmpi-bin)"
	@echo "OpenMP  $(if $(OMP),$(OMP),missing: apt-get install libomp-dev (clang's; gcc brings its own))"
	@echo "cJSON   $(if $(CJSON),$(CJSON),missing: apt-get install libcjson-dev)"
	@echo "CUDA    $(if $(CUDA_LACKS),missing: train_gpt for GPUs $(CUDA_LACKS),$\
		$(NVCC) for $(CUDA_ARCHS:%=sm_%); NCCL $(or $(NCCL),$(NO_NCCL)))"
	@echo "build   $(if $(strip $(CAN)),$(CAN),nothing: the programs need MPI and cJSON)"
	$(if $(strip $(CAN)),@$(MAKE) --no-print-directory $(CAN),@exit 1)

train_gpt_cpu $(BUILD)/train_gpt_cpu: train_gpt.cu $(BUILD)/options | $(BUILD)
	$(call need,cpu)$(COMPILE) $(FP32)

train_gpt_sim $(BUILD)/train_gpt_sim: sim/simulator.c $(BUILD)/options | $(BUILD)
	$(call need,sim)$(SIMCOMPILE)

$(BUILD)/%_sim: dev/test/%.c $(BUILD)/options | $(BUILD)
	$(call need,sim)$(SIMCOMPILE)

train_gpt_fp64 $(BUILD)/train_gpt_fp64: train_gpt.cu $(BUILD)/options | $(BUILD)
	$(call need,cpu)$(COMPILE) $(FP64)

$(BUILD)/%_fp32: dev/test/%.c $(BUILD)/options | $(BUILD)
	$(call need,cpu)$(COMPILE) $(FP32)

$(BUILD)/%_fp64: dev/test/%.c $(BUILD)/options | $(BUILD)
	$(call need,cpu)$(COMPILE) $(FP64)

# the referee under the address and undefined-behaviour sanitizers
$(BUILD)/%_asan: dev/test/%.c $(BUILD)/options | $(BUILD)
	$(call need,cpu)$(COMPILE) -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=undefined $(FP64)

train_gpt $(BUILD)/train_gpt: train_gpt.cu $(BUILD)/options_cuda | $(BUILD)
	$(need_cuda)$(call need,cuda)$(NVCOMPILE)
	@$(if $(MPI),$(if $(NCCL),:,echo "NCCL    $(NO_NCCL)"),echo "MPI     $(NO_MPI)")

train_gpt_emu $(BUILD)/train_gpt_emu: train_gpt.cu $(BUILD)/options | $(BUILD)
	$(call need,cpu)$(EMUCOMPILE) -O2 -g -lcjson

$(BUILD)/%_emu: dev/test/%.cu $(BUILD)/options | $(BUILD)
	$(call need,cpu)$(EMUCOMPILE) -O2 -g -lcjson

$(BUILD)/%_emuasan: dev/test/%.cu $(BUILD)/options | $(BUILD)
	$(call need,cpu)$(EMUCOMPILE) -O1 -g -fsanitize=address,undefined -lcjson

$(BUILD)/%_cuda: dev/test/%.cu $(BUILD)/options_kernels | $(BUILD)
	$(need_cuda)$(NVKERNELS)

$(BUILD)/bench_cuda: dev/bench/bench_cuda.cu $(BUILD)/options_kernels | $(BUILD)
	$(need_cuda)$(NVKERNELS)

$(BUILD)/bench_cuda_emu: dev/bench/bench_cuda.cu $(BUILD)/options | $(BUILD)
	$(call need,cpu)$(EMUCOMPILE) -O2 -g -lcjson

# the readers of files and flags under libFuzzer; NULL + 0, which C++ allows and C does not, is how an empty slot is
# gathered. omp.h is gcc's
$(BUILD)/fuzz: dev/test/fuzz.c $(BUILD)/options | $(BUILD)
	$(call need,cpu)OMPI_CC=clang $(MPICC) -x c $(filter-out -O3 -m% -fopenmp -Werror,$(CFLAGS)) -O1 -g \
		-Wno-unknown-pragmas -Wno-unused-parameter -Wno-unused-function \
		-fsanitize=fuzzer,address,undefined,float-cast-overflow -fno-sanitize=pointer-overflow \
		-fno-sanitize-recover=undefined,float-cast-overflow \
		-idirafter $(shell gcc -print-file-name=include) -MMD -MP -MF $@.d $< -o $@ $(FP64) -lgomp

$(BUILD)/calibrate_fp32: dev/sim/calibrate.c $(BUILD)/options | $(BUILD)
	$(call need,cpu)$(COMPILE) $(FP32)

$(BUILD)/calibrate_fp64: dev/sim/calibrate.c $(BUILD)/options | $(BUILD)
	$(call need,cpu)$(COMPILE) $(FP64)

$(BUILD)/bench_%: dev/bench/bench_%.c $(BUILD)/options | $(BUILD)
	$(call need,cpu)$(COMPILE) $(FP32)

tests: $(TESTS:%=%_fp32) $(TESTS:%=%_fp64)

docs: train_gpt_cpu train_gpt_sim train_gpt_emu
	python3 docs/pictures/draw.py
	python3 dev/test/check_docs.py --update

check-cxx:
	$(call need,cpu)$(MPICXX) -x c++ $(CXXFLAGS) train_gpt.cu
	$(MPICXX) -x c++ $(CXXFLAGS) -DODYSSEUS_FP64 train_gpt.cu

# What the flags make of this compiler and processor, what nvcc is told, and what MPI and NCCL add to that: written when
# it changes, and then all that depends on it is old.
written = >$@.$$$$; if cmp -s $@.$$$$ $@; then rm $@.$$$$; else mv $@.$$$$ $@; fi
$(BUILD)/options: FORCE | $(BUILD)
	@{ echo '$(OPT)'; $(or $(CPP),:) $(OPT) -dM -E -x c - </dev/null; } $(written)
$(BUILD)/options_kernels: FORCE | $(BUILD)
	@echo '$(if $(CUDA_LACKS),,$(NVCC) $(CUDA_MAJOR) $(NVCCFLAGS) $(CUBLASFLAGS))' $(written)
$(BUILD)/options_cuda: $(BUILD)/options_kernels FORCE | $(BUILD)
	@{ cat $<; echo '$(if $(CUDA_LACKS),,$(MPIFLAGS) $(MPILIBS) $(NCCLFLAGS))'; } $(written)

$(BUILD):
	@mkdir -p $(BUILD)

clean:
	rm -rf build train_gpt train_gpt_cpu train_gpt_fp64 train_gpt_emu train_gpt_sim

print-archs:
	@echo $(CUDA_ARCHS:%=sm_%)

print-opt:
	@echo $(OPT)

FORCE:
.PHONY: FORCE print-archs print-opt all tests docs check-cxx clean
.DELETE_ON_ERROR:

-include $(wildcard $(BUILD)/*.d)
