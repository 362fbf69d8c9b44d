//go:build linux && cgo && rdma

#include "shim.h"

#include <errno.h>
#include <string.h>

int shim_pd(struct ibv_context *ctx, struct ibv_pd **out)
{
	*out = ibv_alloc_pd(ctx);
	return *out ? 0 : -errno;
}

int shim_pd_free(struct ibv_pd *pd)
{
	return -ibv_dealloc_pd(pd);
}

int shim_register(struct ibv_pd *pd, uint64_t address, uint64_t size, int read, int write,
		  int flush, struct ibv_mr **out)
{
	unsigned access = IBV_ACCESS_LOCAL_WRITE;

	if (read)
		access |= IBV_ACCESS_REMOTE_READ;
	if (write)
		access |= IBV_ACCESS_REMOTE_WRITE;
	if (flush) {
		int flags = shim_flush_access();
		if (flags < 0)
			return flags;
		access |= (unsigned)flags;
	}
	/* On iWARP what answers a READ is a write of the peer's (RFC 5040). */
	if (!read && !write && pd->context->device->transport_type == IBV_TRANSPORT_IWARP)
		access |= IBV_ACCESS_REMOTE_WRITE;
	/* Never on demand: then the device would take a flush of any memory. */
	*out = ibv_reg_mr(pd, (void *)(uintptr_t)address, (size_t)size, access);
	return *out ? 0 : -errno;
}

int shim_deregister(struct ibv_mr *mr)
{
	return -ibv_dereg_mr(mr);
}

int shim_query(struct ibv_context *ctx, struct shim_device *out)
{
	struct ibv_device_attr_ex attr;
	int err;

	memset(&attr, 0, sizeof(attr));
	err = ibv_query_device_ex(ctx, NULL, &attr);
	if (err)
		return err < 0 ? err : -err;
	*out = (struct shim_device){
		.max_mr_size = attr.orig_attr.max_mr_size,
		.caps_ex = attr.device_cap_flags_ex,
		.odp_caps = attr.odp_caps.general_caps,
		.odp_rc_caps = attr.odp_caps.per_transport_caps.rc_odp_caps,
		.max_qp_wr = attr.orig_attr.max_qp_wr,
		.ports = attr.orig_attr.phys_port_cnt,
	};
	return 0;
}

int shim_query_port(struct ibv_context *ctx, uint8_t port, struct shim_port *out)
{
	struct ibv_port_attr attr;
	int err;

	memset(&attr, 0, sizeof(attr));
	err = ibv_query_port(ctx, port, &attr);
	if (err)
		return err < 0 ? err : -err;
	*out = (struct shim_port){
		.state = (uint32_t)attr.state,
		.link_layer = attr.link_layer,
		.active_mtu = 128u << attr.active_mtu,
	};
	return 0;
}

int shim_try(struct ibv_context *ctx, uint32_t inline_size, int flush)
{
	struct ibv_pd *pd = ibv_alloc_pd(ctx);
	struct ibv_cq *cq = ibv_create_cq(ctx, 1, NULL, NULL, 0);
	struct ibv_qp *qp = NULL;

	if (pd && cq && (!flush || shim_flush_ops())) {
		struct ibv_qp_init_attr_ex attr = {
			.send_cq = cq,
			.recv_cq = cq,
			.qp_type = IBV_QPT_RC,
			.cap = { 1, 1, 1, 1, inline_size },
			.comp_mask = IBV_QP_INIT_ATTR_PD,
			.pd = pd,
		};
		if (flush) {
			attr.comp_mask |= IBV_QP_INIT_ATTR_SEND_OPS_FLAGS;
			attr.send_ops_flags = shim_flush_ops();
		}
		qp = ibv_create_qp_ex(ctx, &attr);
	}
	if (qp)
		(void)ibv_destroy_qp(qp);
	if (cq)
		(void)ibv_destroy_cq(cq);
	if (pd)
		(void)ibv_dealloc_pd(pd);
	return qp != NULL;
}
