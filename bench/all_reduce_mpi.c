/* The peer of all_reduce_bench: MPI_Allreduce in place of two processes.
 * Prints the median microseconds of an operation, on rank 0.
 * Usage: mpirun -n 2 all_reduce_mpi [BYTES [OPERATIONS]] */

#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>

static int compare(const void* a, const void* b) {
  const double x = *(const double*)a;
  const double y = *(const double*)b;
  return (x > y) - (x < y);
}

int main(int argc, char** argv) {
  const int size_bytes = argc > 1 ? atoi(argv[1]) : 16 << 20;
  const int operations = argc > 2 ? atoi(argv[2]) : 50;
  const int warmup_count = 6;
  const int length = size_bytes / (int)sizeof(float);
  float* values = calloc((size_t)length, sizeof(float));
  double* times_us = malloc((size_t)operations * sizeof(double));
  int rank;

  MPI_Init(&argc, &argv);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  for (int i = 0; i < length; ++i) values[i] = 0.0F; /* Sums of zeros stay zeros. */
  for (int i = -warmup_count; i < operations; ++i) {
    const double begin_s = MPI_Wtime();
    MPI_Allreduce(MPI_IN_PLACE, values, length, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
    if (i >= 0) times_us[i] = (MPI_Wtime() - begin_s) * 1e6;
  }
  if (rank == 0) {
    qsort(times_us, (size_t)operations, sizeof(double), compare);
    printf("%.1f\n", times_us[operations / 2]);
  }
  MPI_Finalize();
  free(values);
  free(times_us);
  return 0;
}
