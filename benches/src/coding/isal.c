/* ISA-L's side of `ferro-bench coding`: the same work on the same bytes, timed here, so that no foreign call is in between.
 *
 * isal DATA PARITY LOST BLOCK STRIPES SECONDS
 *
 * LOST is 0 to encode, else how many data shards, the first ones, are to be found again. STRIPES of DATA + PARITY blocks of BLOCK
 * bytes are gone through in turn. Prints a line for each way that ISA-L has to do it: its name, bytes of data a second at best, and the hash
 * of what came of the first stripe.
 */
#include <isa-l.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { SHARDS_MAX = 20 };

static int data, parity, lost, count;
static size_t block, stripes;
static uint8_t *memory, *found;
/* Which shards are read, and how they are multiplied. */
static uint8_t tables[32 * SHARDS_MAX * SHARDS_MAX];
static int reads[SHARDS_MAX];

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec * 1e-9;
}

static uint8_t *shard(size_t stripe, int number)
{
	return memory + (stripe * (data + parity) + number) * block;
}

/* The same bytes as the Rust side writes. */
static void fill(void)
{
	uint64_t *words = (uint64_t *)memory, x = 0;
	for (size_t i = 0; i < stripes * (data + parity) * block / 8; i++) {
		uint64_t z = x += 0x9e3779b97f4a7c15u;
		z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
		z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
		words[i] = z ^ (z >> 31);
	}
}

static uint64_t hash(uint64_t so_far, const uint8_t *bytes)
{
	for (size_t i = 0; i < block; i++)
		so_far = (so_far ^ bytes[i]) * 0x100000001b3u;
	return so_far;
}

static void code(size_t stripe)
{
	uint8_t *in[SHARDS_MAX], *out[SHARDS_MAX];
	for (int i = 0; i < data; i++)
		in[i] = shard(stripe, reads[i]);
	for (int i = 0; i < count; i++)
		out[i] = lost ? found + i * block : shard(stripe, data + i);
	ec_encode_data(block, data, count, tables, in, out);
}

static void raid(size_t stripe)
{
	void *all[SHARDS_MAX];
	for (int i = 0; i < data + parity; i++)
		all[i] = shard(stripe, i);
	if (parity == 2)
		pq_gen(data + 2, block, all);
	else
		xor_gen(data + 1, block, all);
}

static void measure(const char *name, void (*work)(size_t), double seconds)
{
	uint64_t result = 0xcbf29ce484222325u;
	work(0);
	for (int i = 0; i < count; i++)
		result = hash(result, lost ? found + i * block : shard(0, data + i));
	/* The fastest of many short runs: what else the machine does falls into the others. */
	size_t done = 0, batch = 1 + (8 << 20) / (data * block);
	double begun = now(), best = 0;
	do {
		double from = now();
		for (size_t i = 0; i < batch; i++)
			work(done++ % stripes);
		double speed = batch * (double)(data * block) / (now() - from);
		best = speed > best ? speed : best;
	} while (now() - begun < seconds);
	printf("%s %.0f %016llx\n", name, best, (unsigned long long)result);
}

int main(int argc, char **argv)
{
	uint8_t matrix[SHARDS_MAX * SHARDS_MAX], left[SHARDS_MAX * SHARDS_MAX], inverse[SHARDS_MAX * SHARDS_MAX];
	if (argc != 7)
		return fprintf(stderr, "usage: isal DATA PARITY LOST BLOCK STRIPES SECONDS\n"), 2;
	data = atoi(argv[1]), parity = atoi(argv[2]), lost = atoi(argv[3]);
	block = strtoull(argv[4], NULL, 10), stripes = strtoull(argv[5], NULL, 10);
	if (data < 1 || parity < 1 || data + parity > SHARDS_MAX || lost > parity || lost > data || block % 64 || !stripes)
		return fprintf(stderr, "isal: arguments out of bounds\n"), 2;
	count = lost ? lost : parity;
	size_t bytes = stripes * (data + parity) * block;
	if (posix_memalign((void **)&memory, 4096, bytes) || posix_memalign((void **)&found, 4096, block * count))
		return fprintf(stderr, "isal: no memory\n"), 1;
	fill();
	memset(found, 1, block * count);

	/* Rows of powers: 1, 2^i, ... as ours. */
	gf_gen_rs_matrix(matrix, data + parity, data);
	for (int i = 0; i < data; i++)
		reads[i] = i;
	ec_init_tables(data, parity, matrix + data * data, tables);
	if (lost) {
		int survivors = count;
		count = parity, lost = 0;
		for (size_t stripe = 0; stripe < stripes; stripe++)
			code(stripe);
		count = lost = survivors;
		for (int i = 0; i < data; i++) {
			reads[i] = lost + i;
			memcpy(left + i * data, matrix + reads[i] * data, data);
		}
		if (gf_invert_matrix(left, inverse, data))
			return fprintf(stderr, "isal: these can't be found again\n"), 1;
		ec_init_tables(data, lost, inverse, tables);
	}
	double seconds = atof(argv[6]);
	measure("ec_encode_data", code, seconds);
	if (!lost)
		measure(parity == 2 ? "pq_gen" : "xor_gen", raid, seconds);
	return 0;
}
