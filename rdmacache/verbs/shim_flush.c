//go:build linux && cgo && rdma && rdmaflush

#include "shim.h"

int shim_flush_access(void)
{
	return IBV_ACCESS_FLUSH_GLOBAL | IBV_ACCESS_FLUSH_PERSISTENT;
}

uint64_t shim_flush_ops(void)
{
	return IBV_QP_EX_WITH_FLUSH;
}

void shim_flush(struct ibv_qp_ex *ex, const struct shim_wr *wr)
{
	ibv_wr_flush(ex, wr->rkey, wr->remote, wr->length, IBV_FLUSH_PERSISTENT,
		     IBV_FLUSH_RANGE);
}
