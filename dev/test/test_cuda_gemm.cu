/* test_cuda_gemm.cu - the three products of a linear layer through cuBLASLt (or its twin), against double sums.

   Sums are fp32, the result is rounded once to bf16 (or added to an fp32 gradient): a bf16 result is off by at
   most u = 2^-8 of itself, and over many elements by some 0.43 u in norm, so that u/2 is the bound there; fp32
   sums of n terms walk about sqrt(n) half-steps of 2^-24 away. Where something is added to a bf16 result (a
   bias, the old dinp), cuBLASLt may round the sum first: twice, sqrt(2) as much in norm and 2 u at most, as an
   H200 shows at small shapes.                                                                                        */
#include "cuda_support.h"
#include "reference.h"

static Device device;

/* (rows, n) with its rows `ld` apart and no numbers between them; and back, where nothing but those must be there. */
static double *spread(const double *x, i64 rows, i64 n, i64 ld) {
    double *y = zeros(rows * ld);
    for (i64 r = 0; r < rows; r++)
        for (i64 i = 0; i < ld; i++) y[r * ld + i] = i < n ? x[r * n + i] : NAN;
    return y;
}
static double *gathered(const double *y, i64 rows, i64 n, i64 ld) {
    double *x = zeros(rows * n);
    for (i64 r = 0; r < rows; r++)
        for (i64 i = 0; i < ld; i++) {
            if (i < n) x[r * n + i] = y[r * ld + i];
            else if (!isnan(y[r * ld + i])) x[r * n] = INFINITY; /* written past the row */
        }
    return x;
}

static void test_shape(i64 rows, i64 IC, i64 OC) {
    Device *dev = &device;
    double *inp = randoms(rows * IC, 1), *weight = randoms(OC * IC, 1), *bias = randoms(OC, 1),
           *dout = randoms(rows * OC, 1);
    double *old_dinp = randoms(rows * IC, 1), *old_dweight = randoms(OC * IC, 1);
    real *d_inp = upload_real(inp, rows * IC), *d_weight = upload_real(weight, OC * IC),
         *d_bias = upload_real(bias, OC), *d_dout = upload_real(dout, rows * OC);
    real *d_add = upload_real(old_dinp, rows * IC), *d_out = unset_real(rows * OC), *d_plain = unset_real(rows * OC),
         *d_dinp = unset_real(rows * IC);
    accum *d_dweight = upload_accum(old_dweight, OC * IC);
    double *out = zeros(rows * OC), *plain = zeros(rows * OC), *dinp = zeros(rows * IC),
           *sum = copy_of(old_dinp, rows * IC), *dweight = copy_of(old_dweight, OC * IC);
    reference_linear(out, inp, weight, bias, rows, IC, OC);
    reference_linear(plain, inp, weight, NULL, rows, IC, OC);
    reference_linear_backward(dinp, dweight, dout, inp, weight, rows, IC, OC);
    for (i64 i = 0; i < rows * IC; i++) sum[i] += dinp[i];
    linear_forward(dev, d_out, OC, d_inp, d_weight, d_bias, rows, IC, OC);
    linear_forward(dev, d_plain, OC, d_inp, d_weight, NULL, rows, IC, OC);
    linear_backward_input(dev, d_dinp, d_dout, OC, d_weight, rows, IC, OC, 0);
    linear_backward_input(dev, d_add, d_dout, OC, d_weight, rows, IC, OC, 1);
    linear_backward_weight(dev, d_dweight, d_inp, d_dout, OC, rows, IC, OC);
    i64 ld = round_up(OC, 64) + 64; /* the same with rows apart: logits */
    real *d_wide = upload_real(spread(dout, rows, OC, ld), rows * ld), *d_apart = unset_real(rows * ld),
         *d_dinp_apart = unset_real(rows * IC);
    accum *d_dweight_apart = upload_accum(old_dweight, OC * IC);
    linear_forward(dev, d_apart, ld, d_inp, d_weight, d_bias, rows, IC, OC);
    linear_backward_input(dev, d_dinp_apart, d_wide, ld, d_weight, rows, IC, OC, 0);
    linear_backward_weight(dev, d_dweight_apart, d_inp, d_wide, ld, rows, IC, OC);
    char text[96];
    snprintf(text, sizeof text, "rows %lld, IC %lld, OC %lld", rows, IC, OC);
    double u = 0x1p-8, many = rows * i64_min(IC, OC) > 100 ? u / 2 : u, twice = sqrt(2) * many,
           fp32 = 1e-6 + 6e-8 * sqrt((double)rows);
    check_close(download_real(d_out, rows * OC), out, rows * OC, twice, 2 * u, "linear_forward with bias, %s", text);
    check_close(download_real(d_plain, rows * OC), plain, rows * OC, many, u + 1e-5, "linear_forward without bias, %s",
                text);
    check_close(download_real(d_dinp, rows * IC), dinp, rows * IC, many, u + 1e-5, "linear_backward_input, %s", text);
    check_close(download_real(d_add, rows * IC), sum, rows * IC, twice, 2 * u, "linear_backward_input adding, %s",
                text);
    check_close(download_accum(d_dweight, OC * IC), dweight, OC * IC, fp32, 4 * fp32, "linear_backward_weight, %s",
                text);
    double *apart = gathered(download_real(d_apart, rows * ld), rows, OC, ld);
    check_close(apart, out, rows * OC, twice, 2 * u, "linear_forward, rows apart, %s", text);
    /* where the sum is made of two, the first is rounded, too */
    check_close(download_real(d_dinp_apart, rows * IC), dinp, rows * IC, 2 * many, 2 * u,
                "linear_backward_input, rows apart, %s", text);
    check_close(download_accum(d_dweight_apart, OC * IC), dweight, OC * IC, fp32, 4 * fp32,
                "linear_backward_weight, rows apart, %s", text);
    release_all();
}

#ifndef __CUDACC__
/* The emulator's products do what a library's may: another shape has another order of sums. */
static void test_orders(void) {
    enum { ROWS = 300, IC = 64, OC = 64, ALL = OC * IC, HALF = ALL / 2 };
    real *inp = upload_real(randoms(ROWS * IC, 1), ROWS * IC), *dout = upload_real(randoms(ROWS * OC, 1), ROWS * OC);
    accum *all = upload_accum(zeros(ALL), ALL), *again = upload_accum(zeros(ALL), ALL),
          *half = upload_accum(zeros(ALL), ALL);
    linear_backward_weight(&device, all, inp, dout, OC, ROWS, IC, OC);
    linear_backward_weight(&device, again, inp, dout, OC, ROWS, IC, OC);
    linear_backward_weight(&device, half, inp, dout, OC, ROWS, IC, OC / 2);
    double *a = download_accum(all, HALF), *b = download_accum(half, HALF), distance = norm_distance(a, b, HALF);
    int other = 0;
    for (i64 i = 0; i < HALF; i++) other += a[i] != b[i];
    check(same_bits(all, again, ALL * (i64)sizeof(accum)), "a product has the same bits again");
    check(other > HALF / 4 && distance < 1e-6, "half the columns of a product: %d of %d sums have other last bits",
          other, HALF);
    release_all();
}
#endif

int main(void) {
    DevicePlace place = device_place(0, 1, 0);
    device_open(&place);
    device_init(&device, &place, 0);
    void *scratch;
    CUDA_CHECK(cudaMalloc(&scratch, GEMM_WORKSPACE));
    device_scratch(&device, scratch, GEMM_WORKSPACE);
    static const i64 shapes[][3] = {{0, 8, 8}, {64, 128, 64}, {300, 64, 136}, {5, 64, 17}, {37, 65, 129},
                                    {131, 257, 63}, {1, 7, 3}, {1, 1, 1}};
    for (int i = 0; i < COUNT_OF(shapes); i++) test_shape(shapes[i][0], shapes[i][1], shapes[i][2]);
#ifndef __CUDACC__
    test_orders();
#endif
    device_free(&device);
    return checks_done();
}
