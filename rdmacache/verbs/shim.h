//go:build linux && cgo && rdma

/*
 * The calls of rdma-core that package verbs makes. Each returns a count, or 0, or a
 * negative errno, and calls nobody back. There are no threads, and no state but what a
 * handle holds. No pointer of the caller's is kept but those to handles.
 */
#ifndef SHIM_H
#define SHIM_H

#include <infiniband/verbs.h>
#include <rdma/rdma_cma.h>
#include <stdint.h>

/* What Completion and Work have as Op. */
enum {
	SHIM_WRITE = 1,
	SHIM_READ,
	SHIM_FLUSH,
	SHIM_SEND,
	SHIM_RECV,
};

/* An address as Go has it: 4 or 16 bytes in network order; size 0 is none. */
struct shim_address {
	uint8_t ip[16];
	uint32_t size;
	uint32_t scope;
	uint16_t port;
};

/* An event of the connection manager. */
struct shim_event {
	struct rdma_cm_id *id;	/* of the peer that asks; else NULL */
	int32_t event;		/* RDMA_CM_EVENT_* */
	int32_t status;
	uint32_t private_size;
	uint8_t private_data[256];
};

/* A work request, and a completion, as they cross. */
struct shim_wr {
	uint64_t id;
	uint64_t local;
	uint64_t remote;
	uint32_t lkey;
	uint32_t rkey;
	uint32_t length;
	uint8_t op;
	uint8_t signaled;
	uint8_t reserved[2];
};

struct shim_wc {
	uint64_t id;
	uint32_t status;
	uint32_t length;
};

enum { SHIM_POLL = 64 };	/* completions that cross at once, at most */

/*
 * A queue pair with what belongs to it. The arrays are for one call each: Go fills in wr
 * before shim_post and rr before shim_post_recv, and reads wc after the others.
 */
struct shim_queue {
	struct rdma_cm_id *id;
	struct ibv_comp_channel *channel;
	struct ibv_cq *cq;
	struct ibv_qp *qp;
	struct ibv_qp_ex *ex;	/* if FLUSH is used */
	uint32_t sends, recvs, inline_size;
	struct shim_wr *wr;	/* sends of them */
	struct shim_wr *rr;	/* recvs of them */
	struct shim_wc *wc;	/* SHIM_POLL of them */
	struct ibv_send_wr *send;
	struct ibv_sge *send_sge;
	struct ibv_recv_wr *recv;
	struct ibv_sge *recv_sge;
	struct ibv_wc *done;
};

struct shim_device {
	uint64_t max_mr_size;
	uint64_t caps_ex;	/* device_cap_flags_ex */
	uint64_t odp_caps;
	uint32_t odp_rc_caps;
	int32_t max_qp_wr;
	uint32_t ports;
};

struct shim_port {
	uint32_t state, link_layer;
	uint32_t active_mtu;	/* bytes */
};

/* cm.c: identifiers of the connection manager, each with an event channel of its own. */
int shim_id(struct rdma_cm_id **out);
void shim_id_destroy(struct rdma_cm_id *id);
int shim_resolve_address(struct rdma_cm_id *id, const struct shim_address *to,
			 int timeout_ms);
int shim_resolve_route(struct rdma_cm_id *id, int timeout_ms);
int shim_listen(struct rdma_cm_id *id, const struct shim_address *at, int backlog);
int shim_connect(struct rdma_cm_id *id, const void *private_data, uint8_t size);
int shim_accept(struct rdma_cm_id *id, const void *private_data, uint8_t size);
int shim_reject(struct rdma_cm_id *id, const void *private_data, uint8_t size);
void shim_local(struct rdma_cm_id *id, struct shim_address *out);
void shim_peer(struct rdma_cm_id *id, struct shim_address *out);
/* Takes the next event: 1, or 0 if there is none. A peer's id has moved to its own channel. */
int shim_event(struct rdma_event_channel *channel, struct shim_event *out);

/* queue.c */
int shim_queue(struct rdma_cm_id *id, struct ibv_pd *pd, uint32_t sends, uint32_t recvs,
	       uint32_t inline_size, int flush, struct shim_queue **out);
/* Destroys the queue pair, its completion queue, its channel and the id, in this order. */
int shim_queue_destroy(struct shim_queue *q);
/* Posts the first n of wr by one doorbell. */
int shim_post(struct shim_queue *q, uint32_t n);
int shim_post_recv(struct shim_queue *q, uint32_t n);
/* Looks for completions as long as spin_ns, and takes up to SHIM_POLL of them. */
int shim_poll(struct shim_queue *q, int64_t spin_ns);
/* Takes the channel's event if there is one, arms it again, and then polls. */
int shim_take(struct shim_queue *q);

/* device.c */
int shim_pd(struct ibv_context *ctx, struct ibv_pd **out);
int shim_pd_free(struct ibv_pd *pd);
int shim_register(struct ibv_pd *pd, uint64_t address, uint64_t size, int read, int write,
		  int flush, struct ibv_mr **out);
int shim_deregister(struct ibv_mr *mr);
int shim_query(struct ibv_context *ctx, struct shim_device *out);
int shim_query_port(struct ibv_context *ctx, uint8_t port, struct shim_port *out);
/* 1 if a queue pair with that much inline, and FLUSH, can be made; else 0. */
int shim_try(struct ibv_context *ctx, uint32_t inline_size, int flush);

/* flush.c, or noflush.c where the headers do not have it */
int shim_flush_access(void);	/* the access flags, or -EOPNOTSUPP */
uint64_t shim_flush_ops(void);	/* the flag of queue pairs, or 0 */
void shim_flush(struct ibv_qp_ex *ex, const struct shim_wr *wr);

#endif
