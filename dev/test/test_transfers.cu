/* test_transfers.cu - what the host knows of transfers on a stream of their own, under the emulator, where a GPU's
   answers can be arranged: which is the oldest that the compute stream has not been told to wait for, and which of
   those that are asked for the GPU is at. And layers that wait in host memory: out and back, whenever streams run.   */
#define ODYSSEUS_NO_MPI
#include "../../core/comm.h"
#include "../../core/offload.h"
#include "check.h"

/* Ask for a transfer: one byte is set on the comm stream. `hangs`: it never ends. */
static void ask(Device *dev, Links *l, Transfer *t, char *byte, bool hangs) {
    transfer_begin(dev, l, t);
    emu_hangs() = hangs;
    CUDA_CHECK(cudaMemsetAsync(byte, 1, 1, l->stream));
    transfer_launched(dev, l, t);
    emu_hangs() = false;
}

static void test_oldest(Device *dev, Links *l, Transfer t[3], char *byte) {
    check(dev->state.transfer == NULL, "nothing is asked for: attention waits for nothing");
    for (int i = 0; i < 3; i++) ask(dev, l, &t[i], byte, false);
    check(dev->state.transfer == t[0].begun, "of three transfers attention waits for the first to begin");
    transfer_wait(dev, l, &t[1]);
    check(dev->state.transfer == t[0].begun, "the second is waited for: still for the first");
    transfer_wait(dev, l, &t[0]);
    check(dev->state.transfer == t[2].begun, "the first, too: for the third");
    transfer_wait(dev, l, &t[2]);
    check(dev->state.transfer == NULL, "all of them: for nothing");
}

/* A query may find work under way that is done; not a hundred times. */
static bool turns(int (*is)(Transfer *), Transfer *t, int to) {
    int now = !to;
    for (int i = 0; i < 100 && now != to; i++) now = is(t);
    return now == to;
}

static void test_under_way(Device *dev, Links *l, Transfer *t, char *byte) {
    setenv("EMU_BUSY", "100000", 1);
    ask(dev, l, t, byte, false);
    check(transfer_pending(t) && !transfer_is_under_way(t),
          "a transfer behind work that takes long is pending, and nobody waits for it");
    unsetenv("EMU_BUSY");
    check(turns(transfer_pending, t, 0) && !transfer_is_under_way(t), "it is over when it is");
    transfer_wait(dev, l, t);
    ask(dev, l, t, byte, true);
    check(turns(transfer_is_under_way, t, 1), "one that has begun and does not end is under way");
    transfer_wait(dev, l, t);
}

/* A walk over six layers, each of which keeps its number, forward and backward, twice; streams run by `mode`: late, the
   first one late, by a coin. */
static void test_offload(Device *dev, int mode) {
    enum { LAYERS = 6, BYTES = 1000 };
    Offload o;
    char *place[2][2], *found, seen[LAYERS][BYTES];
    int wrong = 0;
    memset(&o, 0, sizeof o);
    CUDA_CHECK(cudaMalloc((void **)&found, sizeof seen));
    o.layers = LAYERS, o.active = 1;
    for (int k = 0; k < 2; k++) {
        for (int odd = 0; odd < 2; odd++) CUDA_CHECK(cudaMalloc((void **)&place[k][odd], BYTES));
        offload_add(&o, place[k][0], place[k][1], BYTES);
    }
    offload_commit(&o, dev);
    emu_streams_run(mode);
    for (int step = 0; step < 2; step++) {
        for (int l = 0; l < LAYERS; l++) {
            offload_room(&o, dev, l);
            for (int k = 0; k < 2; k++)
                CUDA_CHECK(cudaMemsetAsync(place[k][l % 2], 1 + 40 * step + 2 * l + k, BYTES, dev->state.stream));
            offload_out(&o, dev, l);
        }
        for (int l = LAYERS - 1; l >= 0; l--) {
            offload_arrived(&o, dev, l);
            for (int k = 0; k < 2; k++)
                CUDA_CHECK(cudaMemcpyAsync(found + l * BYTES + k * (BYTES / 2), place[k][l % 2], BYTES / 2,
                                           cudaMemcpyDefault, dev->state.stream));
            offload_back(&o, dev, l - 2);
        }
        CUDA_CHECK(cudaStreamSynchronize(dev->state.stream));
        memcpy(seen, found, sizeof seen);
        for (int l = 0; l < LAYERS; l++)
            for (int i = 0; i < BYTES; i++) wrong += seen[l][i] != 1 + 40 * step + 2 * l + i / (BYTES / 2);
    }
    emu_streams_run(0);
    check(wrong == 0, "offload, streams by %d: every layer finds what it kept, %d bytes wrong", mode, wrong);
    check(offload_bytes(&o) == (LAYERS - 2) * 2 * 1024, "%lld bytes of host memory", (long long)offload_bytes(&o));
    offload_free(&o, dev);
    for (int k = 0; k < 4; k++) CUDA_CHECK(cudaFree(place[k / 2][k % 2]));
    CUDA_CHECK(cudaFree(found));
}

int main(void) {
    Device dev;
    Links links;
    Transfer t[3];
    char *byte;
    memset(&dev, 0, sizeof dev), memset(t, 0, sizeof t);
    CUDA_CHECK(cudaStreamCreateWithFlags(&dev.state.stream, cudaStreamNonBlocking));
    CUDA_CHECK(cudaMalloc((void **)&byte, 1));
    links_open(&links, &dev, "nccl");
    test_oldest(&dev, &links, t, byte);
    test_under_way(&dev, &links, &t[0], byte);
    for (int mode = 0; mode < 20; mode++) test_offload(&dev, mode);
    CUDA_CHECK(cudaDeviceSynchronize());
    for (int i = 0; i < 3; i++) transfer_free(&t[i]);
    links_close(&links);
    CUDA_CHECK(cudaFree(byte));
    CUDA_CHECK(cudaStreamDestroy(dev.state.stream));
    return checks_done();
}
