/* checkpoint.h - Hugging Face directories: *.safetensors <-> the logical tensors of a Zero; config.json: config_json.h.

   read    *.safetensors -> z->master, param  each rank converts, out of the mapped files, the elements that it owns
   write   z->master     -> model.safetensors pieces of 16M elements: zero, put in what this rank owns,
                                              collect by bitwise or on rank 0 (every element has one owner),
                                              which appends them to the file

   In between stands one map: element (row, col) of our tensor is element base + row row_step + col col_step of
   the file's, which covers GPT-2's (in, out) matrices and its fused c_attn; tensor_owned() gives the runs. So
   files know nothing of the mesh.
   Host memory: one piece a rank. Wolf et al. 2020 (transformers), arXiv:1910.03771; Rajbhandari et
   al. 2019, arXiv:1910.02054. */
#ifndef ODYSSEUS_CHECKPOINT_H
#define ODYSSEUS_CHECKPOINT_H

#include <omp.h>

#include "config_json.h"
#include "zero.h"

/* What would work instead of `path`, which is no directory. A file that is known to be no model's ends the run here. */
static inline MendText checkpoint_no_directory(const char *path) {
    struct stat st;
    MendText t;
    const char *slash = strrchr(path, '/');
    if (stat(path, &st) == 0 && S_ISREG(st.st_mode)) {
        FileMap m = file_map(path);
        file_refuse_kind(path, &m);
        file_unmap(&m);
        snprintf(t.text, sizeof t.text, "give the directory that the file lies in: --model '%.*s'",
                 slash ? (int)(slash - path) + (slash == path) : 1, slash ? path : ".");
    } else {
        snprintf(t.text, sizeof t.text, "a model of the Hugging Face Hub is fetched first: "
                                        "hf download OWNER/NAME --local-dir DIR, then --model DIR");
    }
    return t;
}

/* ---- weights in: from files, from a seed ------------------------------------------------------------------------- */

#ifndef CHECKPOINT_PIECE /* a test makes it small */
#define CHECKPOINT_PIECE ((i64)1 << 22) /* elements on the host at a time, by each thread that reads: at most 32 MB */
#endif

typedef struct {
    const Zero *z;
    const Safetensor *from; /* NULL: the initial value */
    HfPlace place;
    uint64_t key;
    /* on the host: a piece of this rank's part of the tensor, which begins at `begin` of the flat buffers */
    accum *part;
    i64 begin;
} WeightFill;

static inline void weight_fill_run(void *context, const Tensor *t, i64 row, i64 col, i64 n, i64 at) {
    const WeightFill *f = (const WeightFill *)context;
    accum *out = f->part + at - f->begin;
    i64 index = f->place.base + row * f->place.row_step + col * f->place.col_step, step = f->place.col_step;
    if (f->from && step == 1 && f->from->type == (sizeof(accum) == 8 ? ST_F64 : ST_F32))
        memcpy(out, f->from->data + index * (i64)sizeof(accum), (size_t)n * sizeof(accum));
    else if (f->from)
        for (i64 i = 0; i < n; i++) out[i] = (accum)safetensor_value(f->from, index + i * step);
    else
        for (i64 i = 0; i < n; i++) out[i] = (accum)initial_value(t->spec, f->z->config, f->key, index + i * step);
}

/* This rank's part of the weights of tensor `t`: made on the host piece by piece, and copied. */
static inline void weight_fill(Zero *z, const Tensor *t, WeightFill *f) {
    i64 begin, n = tensor_range(z, t, &begin);
    f->part = (accum *)host_alloc((size_t)i64_min(n, CHECKPOINT_PIECE) * sizeof(accum));
    for (i64 done = 0; done < n; done += CHECKPOINT_PIECE) {
        i64 piece = i64_min(CHECKPOINT_PIECE, n - done);
        if (omp_get_thread_num() == 0) device_poll(z->dev); /* others may wait long, and ask */
        f->begin = begin + done;
        tensor_part(z, t, f->begin, piece, weight_fill_run, f);
#pragma omp critical(weights)
        copy_in(z->dev, z->master + f->begin, f->part, piece * (i64)sizeof(accum));
    }
    free(f->part);
}

/* The initial weights of `seed`: the same fp32 numbers on every mesh and in every build. Threads take tensors as they
   come: each number depends on its place alone. */
static inline void zero_initialise(Zero *z, i64 seed) {
#pragma omp parallel for num_threads(z->dev->host_threads) schedule(dynamic, 1)
    for (int i = 0; i < z->tensors; i++) {
        const Tensor *t = &z->tensor[i];
        char name[HF_NAME_MAX];
        tensor_hf_name(name, t->spec, t->layer);
        WeightFill f = {z, NULL, tensor_hf_place(t->spec, z->config), tensor_key(seed, name), NULL, 0};
        weight_fill(z, t, &f);
    }
    convert(z->dev, z->param, z->master, z->flat);
}

/* ---- names of tensors -------------------------------------------------------------------------------------------- */

/* Modules that hold a model and add their name to those of its tensors: torch.compile, DistributedDataParallel, FSDP,
   activation checkpointing. They stand anywhere in a name; the model's own in front: transformers' body, the field of
   a trainer or an adapter. */
static const char *const NAME_WRAPPERS[] = {"_orig_mod.", "module.", "_fsdp_wrapped_module.",
                                            "_checkpoint_wrapped_module."};
static const char *const NAME_BODIES[] = {"model.", "transformer.", "base_model."};

/* The length of the module at the beginning of `name` that is in the list; 0: none. */
static inline size_t name_module(const char *name, const char *const *list, int n) {
    for (int i = 0; i < n; i++)
        if (text_begins_with(name, list[i])) return strlen(list[i]);
    return 0;
}

/* What a tensor is called inside its model, whatever held that when it was saved: model.layers.0.mlp.up_proj.weight,
   layers.0.mlp.up_proj.weight, _orig_mod.module.model.layers.0.mlp.up_proj.weight are one. For safetensors_rename. */
static inline void tensor_key_name(char *out, const char *name) {
    int front = 1;
    while (*name) {
        size_t n = name_module(name, NAME_WRAPPERS, COUNT_OF(NAME_WRAPPERS));
        if (!n && front) n = name_module(name, NAME_BODIES, COUNT_OF(NAME_BODIES));
        if (n) {
            name += n;
            continue;
        }
        front = 0;
        while (*name && *name != '.') *out++ = *name++;
        if (*name) *out++ = *name++;
    }
    *out = 0;
}

/* The tensor of the name that transformers gives it, whatever the file calls it; NULL: none. */
static inline const Safetensor *checkpoint_find(const SafetensorSet *s, const char *name) {
    char key[HF_NAME_MAX];
    tensor_key_name(key, name);
    return safetensors_find(s, key);
}

/* DIR's weights, found by their names inside the model. Owner: caller; safetensors_close. */
static inline void checkpoint_open(SafetensorSet *s, const char *dir) {
    safetensors_open_dir(s, dir);
    safetensors_rename(s, tensor_key_name);
}

/* The tensor that `t` is (a part of), of the right type and shape. */
static inline const Safetensor *checkpoint_need(const SafetensorSet *s, const char *dir, const Tensor *t,
                                                const HfPlace *place) {
    char name[HF_NAME_MAX];
    tensor_hf_name(name, t->spec, t->layer);
    const Safetensor *found = checkpoint_find(s, name);
    if (!found && t->spec->role == T_LM_HEAD)
        FAIL(EVERYONE,
             "%s: the model's head is not tied, but tensor %s is missing; if it shares the embedding, config.json must "
             "say \"tie_word_embeddings\": true",
             dir, name);
    if (!found) FAIL(EVERYONE, "%s: tensor %s is missing", s->files == 1 ? s->file[0].path : dir, name);
    if (!safetensor_is_float(found))
        FAIL(EVERYONE, "%s: tensor %s has dtype %s; weights can be F32, F16, BF16 or F64", found->path, found->name,
             SAFETENSOR_TYPES[found->type].name);
    if (found->dims != place->dims || memcmp(found->shape, place->shape, (size_t)place->dims * sizeof(i64)) != 0) {
        char is[256], should[256];
        shape_text(is, sizeof is, found->shape, found->dims);
        shape_text(should, sizeof should, place->shape, place->dims);
        FAIL(EVERYONE, "%s: tensor %s has shape %s, the model's is %s", found->path, found->name, is, should);
    }
    return found;
}

/* Tensors that old files carry and that hold no parameter: causal masks, rotary frequencies and tables. */
static inline int checkpoint_is_buffer(const Config *c, const char *key) {
    static const char *const gpt2[] = {".attn.bias", ".attn.masked_bias"};
    static const char *const llama[] = {"rotary_emb.inv_freq", "rotary_emb.original_inv_freq", "rotary_emb.cos_cached",
                                        "rotary_emb.sin_cached"};
    int n = c->arch == ARCH_GPT2 ? COUNT_OF(gpt2) : COUNT_OF(llama);
    for (int i = 0; i < n; i++)
        if (text_ends_with(key, c->arch == ARCH_GPT2 ? gpt2[i] : llama[i])) return 1;
    return 0;
}

/* A head beside a tied embedding must be the same numbers, or somebody's weights would be
   dropped. Rank 0 reads both. */
static inline void checkpoint_check_tied_head(const Zero *z, const SafetensorSet *s, const Safetensor *head, int rank) {
    if (rank != 0) return;
    const Safetensor *wte = checkpoint_find(s, z->config->arch == ARCH_GPT2 ? "wte.weight" : "embed_tokens.weight");
    if (wte->type != head->type || wte->bytes != head->bytes || memcmp(wte->data, head->data, (size_t)wte->bytes) != 0)
        FAIL(THIS_RANK, "%s: the model's head is tied to its embedding, but %s differs from %s", head->path, head->name,
             wte->name);
}

/* Fill this rank's share of the weights from DIR's files; what the file holds beyond the model is an error. */
static inline void checkpoint_load(Zero *z, const char *dir, int rank) {
    SafetensorSet s;
    checkpoint_open(&s, dir);
    unsigned char *used = (unsigned char *)host_alloc((size_t)s.tensors);
    const Safetensor *wrapped = NULL; /* one whose name is neither the model's nor that of its body alone */
    char as[HF_NAME_MAX] = "", name[HF_NAME_MAX];
    for (int i = 0; i < z->tensors; i++) {
        const Tensor *t = &z->tensor[i];
        WeightFill f = {z, NULL, tensor_hf_place(t->spec, z->config), 0, NULL, 0};
        f.from = checkpoint_need(&s, dir, t, &f.place);
        used[f.from - s.tensor] = 1;
        tensor_hf_name(name, t->spec, t->layer);
        if (wrapped || strcmp(f.from->name, name) == 0 || strcmp(f.from->name, f.from->key) == 0) continue;
        wrapped = f.from;
        memcpy(as, name, sizeof as);
    }
    for (int i = 0; i < s.tensors; i++) {
        const Safetensor *extra = &s.tensor[i];
        if (used[i] || checkpoint_is_buffer(z->config, extra->key)) continue;
        if (strstr(extra->key, ".lora_"))
            FAIL(EVERYONE, "%s: tensor %.200s is an adapter's (LoRA), not the model's; %s", extra->path, extra->name,
                 mend_text(MEND_MERGE, dir).text);
        if (strcmp(extra->key, "lm_head.weight") != 0 || !z->config->tied)
            FAIL(EVERYONE, "%s: tensor %.200s is no part of this model (%lld layers); it would be lost", extra->path,
                 extra->name, z->config->layers);
        checkpoint_check_tied_head(z, &s, extra, rank);
    }
    if (wrapped && rank == 0)
        note("%s: names are taken without what wraps the model: %s as %s", wrapped->path, wrapped->name, as);
    for (int i = 0; i < z->tensors; i++) { /* only now: a file that does not fit is refused before gigabytes are read */
        const Tensor *t = &z->tensor[i];
        WeightFill f = {z, NULL, tensor_hf_place(t->spec, z->config), 0, NULL, 0};
        f.from = checkpoint_need(&s, dir, t, &f.place);
        weight_fill(z, t, &f);
    }
    convert(z->dev, z->param, z->master, z->flat);
    free(used);
    safetensors_close(&s);
}

/* ---- weights out ------------------------------------------------------------------------------------------------- */

/* One tensor of the file: `spec` is the first of its parts, all in `block`. */
typedef struct {
    char name[HF_NAME_MAX];
    const TensorSpec *spec;
    int block;
    HfPlace place;
} HfTensor;

/* Every tensor of the file in the order of the tables, the same on every mesh. Owner of the list: caller; free. */
static inline HfTensor *checkpoint_list(const Zero *z, int *count) {
    int specs, n = 0;
    const TensorSpec *spec = tensor_specs(z->config->arch, &specs);
    HfTensor *list = (HfTensor *)host_alloc((size_t)z->tensors * sizeof(HfTensor));
    for (int b = 0; b < z->blocks; b++)
        for (int i = 0; i < specs; i++) {
            if (spec[i].block != z->block[b].kind || spec[i].hf_part != 0 || !tensor_exists(&spec[i], z->config))
                continue;
            HfTensor *t = &list[n++];
            tensor_hf_name(t->name, &spec[i], z->block[b].layer);
            t->spec = &spec[i], t->block = b, t->place = tensor_hf_place(&spec[i], z->config);
        }
    *count = n;
    return list;
}

typedef struct {
    const accum *part; /* on the host: elements of a flat buffer from `begin` on */
    i64 begin;
    HfPlace place;
    i64 first, end; /* elements of the HF tensor that the piece covers */
    float *f32;     /* one of the two is set */
    double *f64;
} WeightPiece;

/* Of a run, the stretch inside the piece: index + j step in [first, end). */
static inline void weight_piece_run(void *context, const Tensor *t, i64 row, i64 col, i64 n, i64 at) {
    const WeightPiece *p = (const WeightPiece *)context;
    i64 step = p->place.col_step, index = p->place.base + row * p->place.row_step + col * step - p->first;
    i64 from = index < 0 ? ceil_div(-index, step) : 0;
    i64 to = i64_min(n, index < p->end - p->first ? ceil_div(p->end - p->first - index, step) : 0);
    (void)t;
    if (p->f32)
        for (i64 j = from; j < to; j++) p->f32[index + j * step] = (float)p->part[at - p->begin + j];
    else
        for (i64 j = from; j < to; j++) p->f64[index + j * step] = (double)p->part[at - p->begin + j];
}

/* Is `t` (a part of) `hf`? q, k and v of gpt2 share one name. */
static inline int weight_belongs(const Tensor *t, const HfTensor *hf) {
    return strcmp(t->spec->hf_name, hf->spec->hf_name) == 0;
}

/* What this rank owns of `hf`, out of the device's `flat`: from *begin on. Owner: caller; free. */
static inline accum *weight_parts(const Zero *z, const accum *flat, const HfTensor *hf, i64 *begin) {
    const Block *b = &z->block[hf->block];
    i64 lo = z->flat, hi = 0, at;
    for (int i = b->first_tensor; i < b->first_tensor + b->tensors; i++) {
        i64 n = tensor_range(z, &z->tensor[i], &at);
        if (n && weight_belongs(&z->tensor[i], hf)) lo = i64_min(lo, at), hi = i64_max(hi, at + n);
    }
    i64 bytes = i64_max(hi - lo, 0) * (i64)sizeof(accum);
    accum *part = (accum *)host_alloc((size_t)bytes);
    if (bytes) copy_out(z->dev, part, flat + lo, bytes);
    *begin = lo;
    return part;
}

/* Elements [first, end) of `hf` on rank 0, in buf; `part` and `begin` as weight_parts gave them. */
static inline void checkpoint_collect(const Zero *z, Wire world, const accum *part, i64 begin, const HfTensor *hf,
                                      i64 first, i64 end, SafetensorType type, void *buf) {
    WeightPiece p;
    memset(&p, 0, sizeof p);
    p.part = part, p.begin = begin, p.first = first, p.end = end;
    p.f32 = type == ST_F32 ? (float *)buf : NULL, p.f64 = type == ST_F32 ? NULL : (double *)buf;
    i64 bytes = (end - first) * SAFETENSOR_TYPES[type].bytes;
    memset(buf, 0, (size_t)bytes);
    const Block *b = &z->block[hf->block];
    for (int i = b->first_tensor; i < b->first_tensor + b->tensors; i++) {
        const Tensor *t = &z->tensor[i];
        if (!weight_belongs(t, hf)) continue;
        p.place = tensor_hf_place(t->spec, z->config);
        tensor_owned(z, t, weight_piece_run, &p);
    }
    wire_collect(world, buf, bytes);
}

/* `flat` (z->master, z->grad, ...) as the safetensors file `path` with HF names and shapes, of type ST_F32 or ST_F64.
   Collective over `world`; rank 0 writes. */
static inline void checkpoint_write_tensors(const Zero *z, Wire world, const char *path, const accum *flat,
                                            SafetensorType type) {
    int n, writes = wire_rank(world) == 0;
    HfTensor *list = checkpoint_list(z, &n);
    SafetensorPlan *plan = (SafetensorPlan *)host_alloc((size_t)n * sizeof(SafetensorPlan));
    i64 largest = 0;
    for (int i = 0; i < n; i++) {
        SafetensorPlan *p = &plan[i];
        p->name = list[i].name, p->type = type, p->dims = list[i].place.dims;
        for (int d = 0; d < p->dims; d++) p->shape[d] = list[i].place.shape[d];
        largest = i64_max(largest, safetensor_plan_bytes(p));
    }
    i64 size = SAFETENSOR_TYPES[type].bytes;
    void *buf = host_alloc((size_t)i64_min(largest, CHECKPOINT_PIECE * size));
    SafetensorWriter w;
    if (writes) safetensors_create(&w, path, plan, n);
    for (int i = 0; i < n; i++) {
        i64 begin;
        accum *part = weight_parts(z, flat, &list[i], &begin);
        for (i64 first = 0, all = safetensor_plan_bytes(&plan[i]) / size; first < all; first += CHECKPOINT_PIECE) {
            i64 end = i64_min(all, first + CHECKPOINT_PIECE);
            checkpoint_collect(z, world, part, begin, &list[i], first, end, type, buf);
            if (writes) safetensors_append(&w, buf, (end - first) * size);
        }
        free(part);
    }
    if (writes) safetensors_finish(&w);
    wire_barrier(world); /* the file is there when any rank returns */
    free(buf);
    free(plan);
    free(list);
}

/* ---- a directory ---------------------------------------------------------------------------------------------- */

static inline void checkpoint_write_config(const Config *c, const char *path) {
    char *text = checkpoint_config_text(c);
    NewFile f;
    new_file_open(&f, path);
    new_file_append(&f, text, (i64)strlen(text));
    new_file_append(&f, "\n", 1);
    new_file_close(&f);
    cJSON_free(text);
}

/* The weights as a Hugging Face directory; collective over `world`. An earlier model there is not overwritten.
   config.json comes last: a directory that has one is complete. */
static inline void checkpoint_write(const Zero *z, Wire world, const char *dir) {
    static const char *const names[] = {"config.json", "model.safetensors", "model.safetensors.index.json"};
    char path[PATH_MAX];
    if (wire_rank(world) == 0) {
        if (mkdir(dir, 0777) != 0 && errno != EEXIST)
            FAIL(THIS_RANK, "%s: cannot create this directory: %s", dir, strerror(errno));
        for (int i = 0; i < COUNT_OF(names); i++) {
            path_join(path, dir, names[i]);
            if (path_exists(path))
                FAIL(THIS_RANK, "%s already holds a model (%s); remove it or choose another directory", dir, names[i]);
        }
    }
    path_join(path, dir, "model.safetensors");
    checkpoint_write_tensors(z, world, path, z->master, ST_F32);
    path_join(path, dir, "config.json");
    if (wire_rank(world) == 0) checkpoint_write_config(z->config, path);
    wire_barrier(world);
}

#endif
