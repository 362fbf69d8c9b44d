//go:build linux && cgo && rdma

#define _GNU_SOURCE
#include "shim.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <time.h>

static int make_qp(struct shim_queue *q, struct ibv_pd *pd, uint32_t inline_size, int flush)
{
	for (;;) {
		struct ibv_qp_init_attr_ex attr = {
			.send_cq = q->cq,
			.recv_cq = q->cq,
			.qp_type = IBV_QPT_RC,
			.cap = {
				.max_send_wr = q->sends,
				.max_recv_wr = q->recvs,
				.max_send_sge = 1,
				.max_recv_sge = 1,
				.max_inline_data = inline_size,
			},
			.comp_mask = IBV_QP_INIT_ATTR_PD,
			.pd = pd,
		};
		if (flush) {
			attr.comp_mask |= IBV_QP_INIT_ATTR_SEND_OPS_FLAGS;
			attr.send_ops_flags = IBV_QP_EX_WITH_RDMA_WRITE |
					      IBV_QP_EX_WITH_RDMA_READ |
					      IBV_QP_EX_WITH_SEND | shim_flush_ops();
		}
		if (!rdma_create_qp_ex(q->id, &attr)) {
			q->qp = q->id->qp;
			q->inline_size = attr.cap.max_inline_data;
			break;
		}
		if (!inline_size)
			return -errno;
		inline_size /= 2;	/* it was a wish */
	}
	if (flush) {
		q->ex = ibv_qp_to_qp_ex(q->qp);
		if (!q->ex)
			return -EOPNOTSUPP;
	}
	return 0;
}

static int make_arrays(struct shim_queue *q)
{
	q->wr = calloc(q->sends, sizeof(*q->wr));
	q->send = calloc(q->sends, sizeof(*q->send));
	q->send_sge = calloc(q->sends, sizeof(*q->send_sge));
	q->rr = calloc(q->recvs, sizeof(*q->rr));
	q->recv = calloc(q->recvs, sizeof(*q->recv));
	q->recv_sge = calloc(q->recvs, sizeof(*q->recv_sge));
	q->wc = calloc(SHIM_POLL, sizeof(*q->wc));
	q->done = calloc(SHIM_POLL, sizeof(*q->done));
	if (!q->wr || !q->send || !q->send_sge || !q->rr || !q->recv || !q->recv_sge ||
	    !q->wc || !q->done)
		return -ENOMEM;
	return 0;
}

/* Frees all but the id. */
static int dismantle(struct shim_queue *q)
{
	int err = 0;

	if (q->qp)
		rdma_destroy_qp(q->id);
	if (q->cq)
		err = -ibv_destroy_cq(q->cq);
	if (q->channel && !err)
		err = -ibv_destroy_comp_channel(q->channel);
	free(q->wr);
	free(q->send);
	free(q->send_sge);
	free(q->rr);
	free(q->recv);
	free(q->recv_sge);
	free(q->wc);
	free(q->done);
	free(q);
	return err;
}

int shim_queue(struct rdma_cm_id *id, struct ibv_pd *pd, uint32_t sends, uint32_t recvs,
	       uint32_t inline_size, int flush, struct shim_queue **out)
{
	struct shim_queue *q = calloc(1, sizeof(*q));
	int err, flags;

	if (!q)
		return -ENOMEM;
	q->id = id;
	q->sends = sends;
	q->recvs = recvs;
	err = make_arrays(q);
	if (err)
		goto out;
	q->channel = ibv_create_comp_channel(id->verbs);
	if (!q->channel) {
		err = -errno;
		goto out;
	}
	flags = fcntl(q->channel->fd, F_GETFL);
	if (flags < 0 || fcntl(q->channel->fd, F_SETFL, flags | O_NONBLOCK) < 0) {
		err = -errno;
		goto out;
	}
	q->cq = ibv_create_cq(id->verbs, (int)(sends + recvs), NULL, q->channel, 0);
	if (!q->cq) {
		err = -errno;
		goto out;
	}
	/*
	 * From here on the queue is armed, or an event waits in the channel: shim_take
	 * arms it whenever it takes one. So no completion goes unnoticed.
	 */
	err = -ibv_req_notify_cq(q->cq, 0);
	if (err)
		goto out;
	err = make_qp(q, pd, inline_size, flush);
	if (err)
		goto out;
	*out = q;
	return 0;
out:
	(void)dismantle(q);
	return err;
}

int shim_queue_destroy(struct shim_queue *q)
{
	struct rdma_cm_id *id = q->id;
	int err;

	(void)rdma_disconnect(id);	/* tells the peer, if it is there */
	err = dismantle(q);
	shim_id_destroy(id);
	return err;
}

/* Whether the work request takes its bytes along. */
static int is_small(const struct shim_queue *q, const struct shim_wr *wr)
{
	return (wr->op == SHIM_WRITE || wr->op == SHIM_SEND) &&
	       wr->length <= q->inline_size;
}

static int post_ex(struct shim_queue *q, uint32_t n)
{
	struct ibv_qp_ex *ex = q->ex;

	ibv_wr_start(ex);
	for (uint32_t i = 0; i < n; i++) {
		const struct shim_wr *wr = &q->wr[i];

		int small = is_small(q, wr);

		ex->wr_id = wr->id;
		/* That it is inline is said twice: rxe sets no flag of its own. */
		ex->wr_flags = (wr->signaled ? IBV_SEND_SIGNALED : 0u) |
			       (small ? IBV_SEND_INLINE : 0u);
		switch (wr->op) {
		case SHIM_WRITE:
			ibv_wr_rdma_write(ex, wr->rkey, wr->remote);
			break;
		case SHIM_READ:
			ibv_wr_rdma_read(ex, wr->rkey, wr->remote);
			break;
		case SHIM_SEND:
			ibv_wr_send(ex);
			break;
		case SHIM_FLUSH:
			shim_flush(ex, wr);
			continue;
		default:
			ibv_wr_abort(ex);
			return -EINVAL;
		}
		if (small)
			ibv_wr_set_inline_data(ex, (void *)(uintptr_t)wr->local, wr->length);
		else
			ibv_wr_set_sge(ex, wr->lkey, wr->local, wr->length);
	}
	return -ibv_wr_complete(ex);
}

static int post(struct shim_queue *q, uint32_t n)
{
	static const enum ibv_wr_opcode opcodes[] = {
		[SHIM_WRITE] = IBV_WR_RDMA_WRITE,
		[SHIM_READ] = IBV_WR_RDMA_READ,
		[SHIM_SEND] = IBV_WR_SEND,
	};
	struct ibv_send_wr *bad;

	for (uint32_t i = 0; i < n; i++) {
		const struct shim_wr *wr = &q->wr[i];
		struct ibv_send_wr *s = &q->send[i];
		struct ibv_sge *sge = &q->send_sge[i];

		if (wr->op != SHIM_WRITE && wr->op != SHIM_READ && wr->op != SHIM_SEND)
			return -EINVAL;
		*sge = (struct ibv_sge){ wr->local, wr->length, wr->lkey };
		*s = (struct ibv_send_wr){
			.wr_id = wr->id,
			.next = i + 1 < n ? s + 1 : NULL,
			.sg_list = sge,
			.num_sge = wr->length ? 1 : 0,
			.opcode = opcodes[wr->op],
			.send_flags = (wr->signaled ? IBV_SEND_SIGNALED : 0u) |
				      (is_small(q, wr) ? IBV_SEND_INLINE : 0u),
			.wr.rdma = { wr->remote, wr->rkey },
		};
	}
	return -ibv_post_send(q->qp, q->send, &bad);
}

int shim_post(struct shim_queue *q, uint32_t n)
{
	return q->ex ? post_ex(q, n) : post(q, n);
}

int shim_post_recv(struct shim_queue *q, uint32_t n)
{
	struct ibv_recv_wr *bad;

	for (uint32_t i = 0; i < n; i++) {
		const struct shim_wr *rr = &q->rr[i];

		q->recv_sge[i] = (struct ibv_sge){ rr->local, rr->length, rr->lkey };
		q->recv[i] = (struct ibv_recv_wr){
			.wr_id = rr->id,
			.next = i + 1 < n ? &q->recv[i + 1] : NULL,
			.sg_list = &q->recv_sge[i],
			.num_sge = rr->length ? 1 : 0,
		};
	}
	return -ibv_post_recv(q->qp, q->recv, &bad);
}

static int64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

int shim_poll(struct shim_queue *q, int64_t spin_ns)
{
	int64_t end = spin_ns > 0 ? now_ns() + spin_ns : 0;
	int got;

	do
		got = ibv_poll_cq(q->cq, SHIM_POLL, q->done);
	while (!got && end && now_ns() < end);
	if (got < 0)
		return -EIO;
	for (int i = 0; i < got; i++)
		q->wc[i] = (struct shim_wc){ q->done[i].wr_id,
					     (uint32_t)q->done[i].status,
					     q->done[i].byte_len };
	return got;
}

int shim_take(struct shim_queue *q)
{
	struct ibv_cq *cq;
	void *context;
	int err;

	if (ibv_get_cq_event(q->channel, &cq, &context)) {
		if (errno != EAGAIN)
			return -errno;
	} else {
		ibv_ack_cq_events(cq, 1);
		/* Before polling: what comes after it makes an event. */
		err = ibv_req_notify_cq(cq, 0);
		if (err)
			return -err;
	}
	return shim_poll(q, 0);
}
