/*
 * flush is RDMA persistence with nothing around it: what rpmemfs is measured
 * against, and a check that the lab counts flushes right.
 *
 *	flush serve DEVICE OFFSET	register 4 MiB of a device-dax device from
 *					OFFSET bytes on, and let peers write there
 *	flush write HOST N		write N pages, each with a FLUSH behind it,
 *					and poll for their end
 *	flush write-sleep HOST N	the same, and sleep until their end
 *	flush commit HOST N		the same as write, with a record of 128
 *					bytes for each page, as an epoch has one
 *	flush swing HOST N		the same as write, with an ATOMIC WRITE of a
 *					pointer behind the flush, and a flush of that:
 *					a commit without checksums
 *	flush write-only HOST N		the pages without the FLUSH: a completion
 *					says that one has arrived, not that it
 *					is persistent
 *
 * A page and its flush go out together, and the next follow when both are
 * done. It prints nanoseconds per page: the median, for the host is noisy.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <infiniband/verbs.h>
#include <rdma/rdma_cma.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, RECORD = 128, POINTER = 8, AREA = 4 << 20 };

static const char port[] = "7480";

/* Where the peer may write; goes along with the connection. */
struct area {
	uint64_t address;
	uint32_t key;
	uint32_t unused;
};

static void die(const char *what)
{
	perror(what);
	exit(1);
}

/* make_queue makes the queue pair of a connection, with FLUSH and ATOMIC WRITE. */
static void make_queue(struct rdma_cm_id *id)
{
	struct ibv_qp_init_attr_ex attr = {
		.qp_type = IBV_QPT_RC,
		.cap = { .max_send_wr = 4, .max_recv_wr = 1,
			 .max_send_sge = 1, .max_recv_sge = 1 },
		.comp_mask = IBV_QP_INIT_ATTR_PD |
			     IBV_QP_INIT_ATTR_SEND_OPS_FLAGS,
		.send_ops_flags = IBV_QP_EX_WITH_RDMA_WRITE |
				  IBV_QP_EX_WITH_FLUSH |
				  IBV_QP_EX_WITH_ATOMIC_WRITE,
	};

	attr.pd = ibv_alloc_pd(id->verbs);
	attr.send_cq = attr.recv_cq =
		ibv_create_cq(id->verbs, 8, NULL,
			      ibv_create_comp_channel(id->verbs), 0);
	if (attr.pd == NULL || attr.send_cq == NULL)
		die("protection domain, completion queue");
	if (rdma_create_qp_ex(id, &attr) != 0)
		die("queue pair with FLUSH and ATOMIC WRITE");
}

/* make_id makes an id whose calls wait until they are done. */
static struct rdma_cm_id *make_id(const char *host, int flags)
{
	struct rdma_addrinfo hints = { .ai_flags = flags,
				       .ai_port_space = RDMA_PS_TCP };
	struct rdma_addrinfo *info;
	struct rdma_cm_id *id;

	if (rdma_getaddrinfo(host, port, &hints, &info) != 0)
		die(host);
	if (rdma_create_id(NULL, &id, NULL, RDMA_PS_TCP) != 0)
		die("rdma_create_id");
	if (flags & RAI_PASSIVE) {
		if (rdma_bind_addr(id, info->ai_src_addr) != 0 ||
		    rdma_listen(id, 1) != 0)
			die("listen");
	} else if (rdma_resolve_addr(id, NULL, info->ai_dst_addr, 5000) != 0 ||
		   rdma_resolve_route(id, 5000) != 0) {
		die(host);
	}
	rdma_freeaddrinfo(info);
	return id;
}

static void serve(const char *device, off_t offset)
{
	unsigned int access = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE |
			      IBV_ACCESS_REMOTE_ATOMIC |
			      IBV_ACCESS_FLUSH_PERSISTENT;
	struct rdma_cm_id *listener = make_id("0.0.0.0", RAI_PASSIVE);
	struct rdma_cm_id *id;
	int fd = open(device, O_RDWR);
	void *mem;

	if (fd < 0)
		die(device);
	mem = mmap(NULL, AREA, PROT_READ | PROT_WRITE, MAP_SHARED, fd, offset);
	if (mem == MAP_FAILED)
		die("mmap");
	puts("serving");
	fflush(stdout);
	while (rdma_get_request(listener, &id) == 0) {
		struct area area = { .address = (uint64_t)(uintptr_t)mem };
		struct rdma_conn_param param = {
			.private_data = &area,
			.private_data_len = sizeof(area),
			.responder_resources = 4,
		};
		struct ibv_mr *mr;

		make_queue(id);
		mr = ibv_reg_mr(id->qp->pd, mem, AREA, access);
		if (mr == NULL)
			die("register persistent memory");
		area.key = mr->rkey;
		if (rdma_accept(id, &param) != 0)
			die("accept");
		/* Peers are few here: nothing of theirs is given back. */
	}
	die("rdma_get_request");
}

/* What to do for a page. */
enum { WITH_FLUSH = 1, ASLEEP = 2, WITH_RECORD = 4, WITH_POINTER = 8 };

/* sleep_until waits for the event of a queue that is armed. */
static void sleep_until(struct ibv_cq *cq)
{
	void *context;

	if (ibv_get_cq_event(cq->channel, &cq, &context) != 0)
		die("completion channel");
	ibv_ack_cq_events(cq, 1);
}

/* push posts the work requests for one page and waits for the last of them. */
static void push(struct ibv_qp *qp, const struct ibv_mr *mr,
		 const struct area *area, uint64_t offset, int how)
{
	struct ibv_qp_ex *q = ibv_qp_to_qp_ex(qp);
	bool flush = how & WITH_FLUSH;
	struct ibv_wc wc;
	int n;

	if (how & ASLEEP && ibv_req_notify_cq(qp->send_cq, 0) != 0)
		die("arm");
	ibv_wr_start(q);
	q->wr_flags = flush ? 0 : IBV_SEND_SIGNALED;
	ibv_wr_rdma_write(q, area->key, area->address + offset);
	ibv_wr_set_sge(q, mr->lkey, (uint64_t)(uintptr_t)mr->addr, PAGE);
	if (how & WITH_RECORD) {
		ibv_wr_rdma_write(q, area->key, area->address + offset + PAGE);
		ibv_wr_set_sge(q, mr->lkey, (uint64_t)(uintptr_t)mr->addr,
			       RECORD);
	}
	if (flush) {
		q->wr_flags = how & WITH_POINTER ? 0 : IBV_SEND_SIGNALED;
		ibv_wr_flush(q, area->key, area->address + offset,
			     how & WITH_RECORD ? PAGE + RECORD : PAGE,
			     IBV_FLUSH_PERSISTENT, IBV_FLUSH_RANGE);
	}
	if (how & WITH_POINTER) {
		uint64_t pointer = area->address + AREA - POINTER;

		ibv_wr_atomic_write(q, area->key, pointer, &offset);
		q->wr_flags = IBV_SEND_SIGNALED;
		ibv_wr_flush(q, area->key, pointer, POINTER,
			     IBV_FLUSH_PERSISTENT, IBV_FLUSH_RANGE);
	}
	if (ibv_wr_complete(q) != 0)
		die("post");
	if (how & ASLEEP)
		sleep_until(qp->send_cq);
	/* The only processor of the machine has to do rxe's work, too. */
	while ((n = ibv_poll_cq(qp->send_cq, 1, &wc)) == 0)
		sched_yield();
	if (n < 0 || wc.status != IBV_WC_SUCCESS) {
		fprintf(stderr, "completion: %s\n", ibv_wc_status_str(wc.status));
		exit(1);
	}
}

static int64_t nanoseconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static int compare(const void *a, const void *b)
{
	int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;

	return (x > y) - (x < y);
}

static void write_pages(const char *host, int pages, int how)
{
	struct rdma_conn_param param = { .initiator_depth = 4, .retry_count = 6,
					 .rnr_retry_count = 6 };
	struct rdma_cm_id *id = make_id(host, 0);
	char *page = aligned_alloc(PAGE, PAGE);
	struct area area;
	struct ibv_mr *mr;
	int64_t *took = calloc((size_t)pages, sizeof(*took));

	make_queue(id);
	if (rdma_connect(id, &param) != 0)
		die("connect");
	if (id->event->param.conn.private_data_len < sizeof(area)) {
		fprintf(stderr, "the peer is not flush serve\n");
		exit(1);
	}
	memcpy(&area, id->event->param.conn.private_data, sizeof(area));
	mr = ibv_reg_mr(id->qp->pd, page, PAGE, IBV_ACCESS_LOCAL_WRITE);
	if (mr == NULL || took == NULL)
		die("register");
	for (int i = 0; i < pages; i++) {
		int64_t begin = nanoseconds();

		memset(page, i + 1, PAGE);
		push(id->qp, mr, &area, (uint64_t)i * PAGE % (AREA - PAGE),
		     how);
		took[i] = nanoseconds() - begin;
	}
	qsort(took, (size_t)pages, sizeof(*took), compare);
	printf("%lld ns per page\n", (long long)took[pages / 2]);
	/* The end of the process disconnects, and does not wait for the peer. */
}

int main(int argc, char **argv)
{
	int pages = argc == 4 ? atoi(argv[3]) : 0;

	if (argc == 4 && strcmp(argv[1], "serve") == 0)
		serve(argv[2], atol(argv[3]));
	else if (pages > 0 && strcmp(argv[1], "write") == 0)
		write_pages(argv[2], pages, WITH_FLUSH);
	else if (pages > 0 && strcmp(argv[1], "write-sleep") == 0)
		write_pages(argv[2], pages, WITH_FLUSH | ASLEEP);
	else if (pages > 0 && strcmp(argv[1], "commit") == 0)
		write_pages(argv[2], pages, WITH_FLUSH | WITH_RECORD);
	else if (pages > 0 && strcmp(argv[1], "swing") == 0)
		write_pages(argv[2], pages, WITH_FLUSH | WITH_POINTER);
	else if (pages > 0 && strcmp(argv[1], "write-only") == 0)
		write_pages(argv[2], pages, 0);
	else {
		fprintf(stderr, "usage: flush serve DEVICE OFFSET | "
			"{write|write-sleep|commit|swing|write-only} HOST N\n");
		return 2;
	}
	return 0;
}
