// Whether this process may run the library. Linux gives tiles only to processes that ask for them.
#if defined(__AMX_BF16__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

extern "C" int fovea_may_run() {
#if defined(__AMX_BF16__)
  constexpr long ask = 0x1023, tiles = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, ask, tiles) == 0;
#else
  return 1;
#endif
}

// Whether products of many bfloat16 rows are made in tiles.
extern "C" int fovea_has_tiles() {
#if defined(__AMX_BF16__)
  return 1;
#else
  return 0;
#endif
}
