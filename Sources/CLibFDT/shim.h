// libfdt, with the macros that Swift cannot see as functions.
#ifndef SMMUD_CLIBFDT_SHIM_H
#define SMMUD_CLIBFDT_SHIM_H

#include <libfdt.h>

static inline uint32_t smmud_fdt_magic(const void *fdt) { return fdt_magic(fdt); }
static inline uint32_t smmud_fdt_totalsize(const void *fdt) { return fdt_totalsize(fdt); }

#endif
