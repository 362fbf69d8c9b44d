/*
 * The daemon and two attached processes that share a region: is every committed
 * epoch the memory as it was at the barrier, whoever dies when?
 *
 * Each process has one thread, whose change stores to page 0 and then to page 1,
 * and a helper thread. How a thread parks is in threads.pml; here it does or not.
 * Messages are variables: the daemon's last order, and each helper's answer. The
 * daemon goes on to the next barrier when all have seen the end of this one.
 *
 * -DKILL: process 1 is killed, at any time.
 * -DWRITEBACK: the kernel writes one page back, at any time.
 *
 * Variants, each of which must fail:
 *	-DROLLBACK_AT_ONCE  a death rolls back without parking the survivor (with -DKILL)
 *	-DLATE_TIME	an entry's time is taken after its page was copied
 *	-DCOPY_FIRST	a page is copied before the scan protects it again
 *	-DRELEASE_EARLY	a process that is not alone releases its threads when it is done
 *	-DREACH		claims that no epoch with both processes' changes is committed
 */

#define MEMBERS	 2
#define PAGES	 2
#ifndef BARRIERS
#define BARRIERS 2	/* that the daemon begins by itself; only they may time out */
#endif
#ifndef CHANGES
#define CHANGES	 1	/* of the first process's thread */
#endif
#ifndef OTHERS
#define OTHERS	 1	/* of the second one's */
#endif
#define ALLOW	 255

mtype = { DUE, GO, RELEASE, END, READY, LATE, DONE, SEEN }

/* Memory: the kernel's pages, and for each process which it stored to. */
byte page[PAGES];
bool written[4];
#define WRITTEN(m, p)	written[(m) * PAGES + (p)]
byte clock[PAGES];	/* times are only compared for one page */

/* Processes. */
byte acked[MEMBERS], due[MEMBERS], released[MEMBERS];
mtype answer[MEMBERS];
bool dead[MEMBERS];
/* Entries: page, time at which the copying began, tag, content. */
chan ring[MEMBERS] = [8] of { byte, byte, byte, byte }

/* The daemon: its order, what it has of each epoch, and what is durable. */
mtype order;
byte number;		/* of the barrier */
bool sole;
typedef image { byte at[PAGES]; byte when[PAGES] }	/* when 0: page not in it */
image opened, sealed;
byte seal_number;	/* entries with a smaller tag are of the sealed epoch */
byte durable[PAGES];

/* Only the properties look at these. */
bool holding;		/* no thread may store */
byte truth[PAGES];	/* memory at the seal */

/* A store of a thread that is dead never happens. */
inline store_page(p)
{
	d_step {
		if
		:: dead[me]
		:: else ->
			assert(!holding);
			page[p] = page[p] + 1;
			WRITTEN(me, p) = true
		fi
	}
}

proctype Thread(byte me, changes)
{
	byte done;

	do
	:: atomic { done < changes && !dead[me] -> done++ };
		store_page(0);
		store_page(1);
		/* Restart point. */
		if
		:: acked[me] == due[me]
		:: acked[me] != due[me] ->
			acked[me] = due[me];
			(released[me] >= acked[me] || dead[me])
		fi
	:: atomic { done == changes || dead[me] -> done = 0; break }
	od;
	acked[me] = ALLOW
}

#define give()	ring[me]!p, w, tag, v; v = 0; w = 0; p++

/* A round: scans, protects and copies what was written. The order matters. */
inline round()
{
	p = 0;
	do
	:: atomic { p == PAGES -> p = 0; break }
	:: atomic { p < PAGES && !WRITTEN(me, p) -> p++ }
#if defined(COPY_FIRST)
	:: atomic { p < PAGES && WRITTEN(me, p) ->
			clock[p]++; w = clock[p]; v = page[p] };
		atomic { WRITTEN(me, p) = false; give() }
#elif defined(LATE_TIME)
	:: atomic { p < PAGES && WRITTEN(me, p) ->
			WRITTEN(me, p) = false; v = page[p] };
		atomic { clock[p]++; w = clock[p]; give() }
#else
	:: atomic { p < PAGES && WRITTEN(me, p) ->
			WRITTEN(me, p) = false; clock[p]++; w = clock[p] };
		atomic { v = page[p]; give() }
#endif
	od
}

proctype MemberHelper(byte me)
{
	byte p, v, w, tag;

	do
	:: order == DUE && !answer[me] && !dead[me] ->
		if
		:: round()		/* pre-copy, the thread runs */
		:: true
		fi;
		due[me] = number;
		if
		:: acked[me] == number || acked[me] == ALLOW -> answer[me] = READY
		:: number <= BARRIERS -> answer[me] = LATE
		:: order != DUE || dead[me]	/* called off, killed */
		fi
	:: order == GO && answer[me] == READY && !dead[me] ->
		round();
		tag = number;
#ifndef RELEASE_EARLY
		if
		:: !sole
		:: sole ->
#endif
			atomic { holding = false; released[me] = number }
#ifndef RELEASE_EARLY
		fi;
#endif
		answer[me] = DONE
	:: atomic { order == RELEASE && answer[me] != SEEN && !dead[me] ->
		tag = number;
		released[me] = number;
		answer[me] = SEEN }
	:: order == END || dead[me] -> break
	od
}

#ifdef KILL
proctype Killer()
{
	dead[1] = true
}
#endif

inline put(im, p, w, v)
{
	if
	:: w > im.when[p] -> im.when[p] = w; im.at[p] = v
	:: else
	fi
}

#ifdef WRITEBACK
/* A page under writeback does not change until the daemon has answered. */
proctype Writeback()
{
	d_step { clock[0]++; put(opened, 0, clock[0], page[0]) }
}
#endif

inline clear(im)
{
	im.at[0] = 0; im.at[1] = 0; im.when[0] = 0; im.when[1] = 0
}

inline take(m)
{
	ring[m]?p, w, t, v;
	if
	:: t < seal_number -> put(sealed, p, w, v)
	:: else -> put(opened, p, w, v)
	fi
}

/* Takes what is in the rings. */
inline consume()
{
	d_step {
		do
		:: nempty(ring[0]) -> take(0)
		:: nempty(ring[1]) -> take(1)
		:: empty(ring[0]) && empty(ring[1]) -> break
		od;
		p = 0; w = 0; t = 0; v = 0
	}
}

inline seal()
{
	d_step {
		holding = true;
		truth[0] = page[0]; truth[1] = page[1];
		assert(truth[0] == truth[1]);
		for (p: 0 .. PAGES - 1) {
			sealed.at[p] = opened.at[p];
			sealed.when[p] = opened.when[p]
		}
		p = 0;
		clear(opened);
		seal_number = number
	}
}

inline commit()
{
	d_step {
		for (p: 0 .. PAGES - 1) {
			if
			:: sealed.when[p] > 0 -> durable[p] = sealed.at[p]
			:: else
			fi;
			assert(durable[p] == truth[p])
		}
		p = 0;
		truth[0] = 0; truth[1] = 0;
		clear(sealed)
	}
}

/* What memory shows is the committed image again; the open epoch is lost. */
inline rollback()
{
	d_step {
		page[0] = durable[0]; page[1] = durable[1];
		clear(opened); clear(sealed);
		do
		:: nempty(ring[0]) -> ring[0]?_, _, _, _
		:: nempty(ring[1]) -> ring[1]?_, _, _, _
		:: empty(ring[0]) && empty(ring[1]) -> break
		od;
		holding = false;
		lost = false
	}
}

#define has_answered(m)	(dead[m] || answer[m] == READY || answer[m] == LATE)
#define is_done(m)	(dead[m] || answer[m] == DONE)
#define has_seen(m)	(dead[m] || answer[m] == SEEN)

/* The daemon sees a death when it reads the socket. */
inline look()
{
	if
	:: dead[1] && !buried -> buried = true; lost = true
	:: else
	fi
}

proctype Daemon()
{
	byte p, w, t, v;
	bool lost, buried;

	do
	:: number >= BARRIERS && !lost -> break
	:: number < BARRIERS || lost ->
		d_step { number++; answer[0] = 0; answer[1] = 0; order = DUE };
		if
		:: has_answered(0) && has_answered(1)
		:: number <= BARRIERS -> goto release	/* the daemon's time-out */
		fi;
		look();
#ifdef ROLLBACK_AT_ONCE
		if
		:: lost -> rollback(); goto release
		:: else
		fi;
#endif
		if
		:: answer[0] == LATE || !buried && answer[1] == LATE -> goto release
		:: else
		fi;
		if
		:: lost -> rollback(); goto release
		:: else
		fi;
		if
		:: consume()	/* entries of the pre-copy came before the seal */
		:: true		/* or they come after it */
		fi;
		seal();
		d_step { sole = buried; order = GO };
		is_done(0) && is_done(1);
		look();
		if
		:: lost -> rollback(); goto release	/* the survivor is still parked */
		:: else
		fi;
		d_step { holding = false; order = RELEASE };
		/* Behind the running threads. */
		consume();
#ifdef REACH
		assert(truth[0] < 2);
#endif
		commit();
release:	order = RELEASE;
		has_seen(0) && has_seen(1);
		look()
	od;
	order = END
}

init {
	atomic {
		byte i;
		for (i: 0 .. MEMBERS - 1) {
			run Thread(i, (i == 0 -> CHANGES : OTHERS));
			run MemberHelper(i)
		}
		run Daemon();
#ifdef KILL
		run Killer();
#endif
#ifdef WRITEBACK
		run Writeback()
#endif
	}
}
