//go:build linux && cgo && rdma && !rdmaflush

#include "shim.h"

#include <errno.h>

int shim_flush_access(void)
{
	return -EOPNOTSUPP;
}

uint64_t shim_flush_ops(void)
{
	return 0;
}

void shim_flush(struct ibv_qp_ex *ex, const struct shim_wr *wr)
{
	(void)ex;
	(void)wr;
}
