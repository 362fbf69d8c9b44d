/*
 * The threads of one attached process and its helper thread: who may store
 * while the helper believes that all are parked? README.md has the table of
 * variables, of the orders that the C code uses, and of the variants below.
 *
 * The protocol follows Khorguani, Ropars and De Palma, "ResPCT: Fast
 * Checkpointing in Non-volatile Memory for Multi-threaded Applications",
 * EuroSys 2022, with a number in place of its flag.
 *
 * Spin runs every statement at once and in order: all accesses are seq_cst. What
 * a processor makes of less is put back by hand where it matters: store_release
 * puts the value into a store buffer, which empties at some later time.
 *
 * Variants, each of which must fail:
 *	-DFLAG		parked is a flag, cleared on the way out
 *	-DNO_RECHECK	prevent does not look at due again
 *	-DTWO_LOADS	a restart point loads due again to acknowledge it
 *	-DNO_FENCE	prevent's store is a release store
 *	-DHELPER_NO_FENCE  the helper's store of due is a release store
 *	-DNO_WAKE	prevent's step back does not wake the helper
 *	-DALLOW_NO_FENCE   allow's store is a release store
 *	-DREACH		claims that no barrier follows on one that all threads saw
 * NO_WAKE and ALLOW_NO_FENCE are seen only with -DPATIENT.
 *
 * -DPATIENT: the helper's time-out comes last, when nothing else can happen, and
 * some thread must be to blame for it. Else it may come at any time.
 */

#ifndef THREADS
#define THREADS	3
#endif
#ifndef BARRIERS
#define BARRIERS 2	/* numbers that the helper raises */
#endif
#ifndef STEPS
#define STEPS	1	/* what each thread does between its start and its end */
#endif

#define ALLOW	255	/* acked of a thread that is in allow */
#define PARKED	254	/* acked of a parked thread, with -DFLAG */
#define HELPER	THREADS	/* index of the helper's store buffer */

byte due;		/* newest number raised */
byte released;		/* newest number released or called off */
byte acked[THREADS];	/* number at which a thread parked last; the helper looks at
			   a thread that is not registered as at one in allow */
bool arrived;		/* the futex word changed since the helper read it */

/* Only the properties look at these. */
byte half;		/* threads in the middle of a change */
bool sealing;		/* the helper believes that all are parked */
byte busy;		/* threads that stay away until a barrier is called off */
bool calledoff;
bool over;		/* the helper is through */
byte ended;		/* threads that are through */

#if defined(NO_FENCE) || defined(ALLOW_NO_FENCE) || defined(HELPER_NO_FENCE)
/* Store buffers of one entry: the threads' to acked, the helper's to due. */
bool late[THREADS + 1];
byte late_value[THREADS + 1];

#define store_release(i, value)	\
	atomic { !late[i] -> late_value[i] = value; late[i] = true }
#define store_acked(value)	atomic { !late[me] -> acked[me] = value }
#define store_released(value)	atomic { !late[HELPER] -> released = value }

proctype Drain(byte i)
{
end:	do
	:: atomic {
		late[i] ->
		if
		:: i == HELPER -> due = late_value[i]
		:: else -> acked[i] = late_value[i]
		fi;
		late[i] = false
	}
	od
}
#else
#define store_acked(value)	acked[me] = value
#define store_released(value)	released = value
#endif

/* A change is two stores to the region. Neither may fall into a seal. */
inline change()
{
	d_step { assert(!sealing); half++ }
#ifdef PATIENT
	if
	:: true
	:: busy++; atomic { calledoff || over -> busy-- }
	fi;
#endif
	d_step { assert(!sealing); half-- }
}

#ifdef FLAG
#define MINE	mine
#else
#define MINE	acked[me]
#endif

inline restart_point()
{
	d = due;			/* relaxed: late is only later */
	if
	:: atomic { d == MINE -> d = 0 }	/* the fast path */
	:: d != MINE ->
#if defined(FLAG)
		mine = d;
		store_acked(PARKED);
#elif defined(TWO_LOADS)
		store_acked(due);
#else
		store_acked(d);
#endif
		arrived = true;
		atomic { released >= d -> d = 0 }	/* futex wait, acquire */
#ifdef FLAG
		store_acked(0)
#endif
	fi
}

inline allow()
{
#ifdef ALLOW_NO_FENCE
	store_release(me, ALLOW);
#else
	store_acked(ALLOW);
#endif
	d = due;
	if
	:: atomic { d > released -> d = 0 }; arrived = true
	:: atomic { d <= released -> d = 0 }
	fi
}

inline prevent()
{
	do
	:: d = due;
	   if
	   :: released < d -> released >= d	/* futex wait; then look again */
	   :: released >= d ->
#if defined(FLAG)
		mine = d;
		store_acked(0);
#elif defined(NO_FENCE)
		store_release(me, d);
#else
		store_acked(d);
#endif
#ifdef NO_RECHECK
		atomic { d = 0; break }
#else
		if
		:: atomic { due == d -> d = 0; break }
		:: due != d
		fi;
		/* The helper may have seen this thread run: it has to look again. */
		store_acked(ALLOW);
#ifndef NO_WAKE
		arrived = true
#endif
#endif
	   fi
	od
}

proctype Thread(byte me)
{
	byte d, step;
#ifdef FLAG
	byte mine;
#endif

	prevent();		/* registration */
	do
	:: atomic { step < STEPS -> step++ }; change(); restart_point()
	:: atomic { step < STEPS -> step++ }; allow(); prevent(); change()
	:: atomic { step = 0; break }
	od;
	allow();		/* the end of the thread */
	ended++
}

#define looks_parked(i) (acked[i] == ALLOW || acked[i] == PARKED || acked[i] == n)

proctype Helper()
{
	byte n, i;

	do
	:: n < BARRIERS ->
		n++;
#ifdef HELPER_NO_FENCE
		store_release(HELPER, n);
#else
		due = n;
#endif
look:		arrived = false;
		i = 0;
		do
		:: atomic { i < THREADS && looks_parked(i) -> i++ }
		:: atomic { i < THREADS && !looks_parked(i) -> i = 0; break }
		:: atomic { i == THREADS -> i = 0; goto seal }
		od;
		if
		:: arrived -> goto look
#ifdef PATIENT
		:: timeout ->
			/* Nobody can move: then some thread is really away. */
			assert(busy > 0)
#else
		:: true
#endif
		fi;
		calledoff = true;
		store_released(n);
		goto next;
seal:
#ifdef REACH
		assert(n < BARRIERS || ended > 0 || acked[0] + acked[1] != 2 * n);
#endif
		atomic {
			sealing = true;
			assert(half == 0)
		}
		sealing = false;
		store_released(n);
next:		skip
	:: else -> break
	od;
	over = true
}

init {
	atomic {
		byte i;
#ifdef store_release
		for (i : 0 .. THREADS) { run Drain(i) }
#endif
		for (i : 0 .. THREADS - 1) {
			acked[i] = ALLOW;
			run Thread(i)
		}
		run Helper()
	}
	/* Every barrier ended, and everybody went on. */
	over && ended == THREADS;
	assert(released == BARRIERS)
}
