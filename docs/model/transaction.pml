/* The transaction as an update makes it, on a disk whose writes reach the medium when they like, until a flush.
 *
 *   per image    CONTENT  objects        NAME   links and state directory
 *                KERNEL   boot files     ENTRY  its file in the boot menu
 *   first, prev  the order of the menu: what boots, and what rollback returns to (one byte each)
 *
 * v is what programs see, d what a power cut leaves; a power cut keeps any subset of what was not flushed. Two updaters, each with an image
 * of its own, over image 0 which boots; CRASHES crashes at any moment: a kill of both (the page cache lives on), or a power cut.
 *
 * Promises:  P1 what boots is whole, on the medium at every power cut and for programs at every kill
 *            P2 after success a power cut does not bring the old one back
 *            P3 there is one writer
 *            P4 at rest, the deployment that rollback returns to is whole
 *            P5 success means that the new one boots; and nothing is given up half-way: an updater that is not disturbed any more succeeds (no invalid end state)
 *            P6 a name that was given on the medium has its content there: the next run takes it for known
 *
 * DEFECT selects a seeded defect; ``run.py`` has the list and expects each of them to be found.
 */
#ifndef DEFECT
#define DEFECT 0
#endif
#ifndef CRASHES
#define CRASHES 3
#endif
#define CONTENT 0
#define NAME    1
#define KERNEL  2
#define ENTRY   3
#define ITEM(i, k) ((i) * 4 + (k))
#define NONE 3

bit v[12]; bit d[12];
byte vfirst = 0; byte dfirst = 0;
byte vprev = NONE; byte dprev = NONE;
byte vjournal = NONE; byte djournal = NONE;  /* the image for which "switching" is recorded */
bit locked = 0;
byte writers = 0;
byte epoch = 0;             /* counts crashes: an updater of an older epoch is dead */
byte succeeded = NONE;      /* the image of the last success that no later switch has touched */
bit finished[2];
bit dropped[3];             /* being deleted: its name may be left over its content for a while */

#define WHOLE(a, i) (a[ITEM(i, CONTENT)] && a[ITEM(i, NAME)] && a[ITEM(i, KERNEL)] && a[ITEM(i, ENTRY)])
#define ALIVE (mine == epoch)
#define STEP(action) atomic { if :: ALIVE -> action :: else -> goto again fi }

inline flush_root() { d[ITEM(1,CONTENT)] = v[ITEM(1,CONTENT)]; d[ITEM(2,CONTENT)] = v[ITEM(2,CONTENT)]; d[ITEM(0,CONTENT)] = v[ITEM(0,CONTENT)];
                      d[ITEM(1,NAME)] = v[ITEM(1,NAME)]; d[ITEM(2,NAME)] = v[ITEM(2,NAME)]; d[ITEM(0,NAME)] = v[ITEM(0,NAME)]; }
inline flush_boot() { d[ITEM(0,KERNEL)] = v[ITEM(0,KERNEL)]; d[ITEM(1,KERNEL)] = v[ITEM(1,KERNEL)]; d[ITEM(2,KERNEL)] = v[ITEM(2,KERNEL)];
                      d[ITEM(0,ENTRY)] = v[ITEM(0,ENTRY)]; d[ITEM(1,ENTRY)] = v[ITEM(1,ENTRY)]; d[ITEM(2,ENTRY)] = v[ITEM(2,ENTRY)];
                      dfirst = vfirst; dprev = vprev }

/* Deletes one image that nothing in the menu keeps. Entries first, so that nothing names what goes. */
inline drop(x) {
    STEP(dropped[x] = 1);
    STEP(v[ITEM(x, ENTRY)] = 0);
    STEP(v[ITEM(x, KERNEL)] = 0);
    STEP(v[ITEM(x, NAME)] = 0);
    STEP(v[ITEM(x, CONTENT)] = 0)
}

proctype updater(byte me) {
    byte mine; byte old; byte x;
again:
    atomic { !finished[me - 1]; mine = epoch }
    /* lock: the kernel drops it when its holder dies */
    atomic {
        if
        :: !ALIVE -> goto again
#if DEFECT == 6
        :: ALIVE -> skip
#else
        :: ALIVE && !locked -> locked = 1
#endif
        fi;
        writers++; assert(writers == 1)  /* P3 */
    }
    /* recovery: what boots decides, the journal only explains */
    STEP(old = vfirst);
#if DEFECT == 12
    if
    :: ALIVE && vjournal == me -> old = me; goto finish
    :: else -> skip
    fi;
#endif
    if
    :: old == me -> goto finish
    :: else -> skip
    fi;
#if DEFECT == 9
    drop(old);
#endif
#if DEFECT == 7
    for (x : 0 .. 2) { if :: x != me && x != vprev -> drop(x) :: else -> skip fi }
#endif
    /* stage */
    STEP(v[ITEM(me, CONTENT)] = 1);
#if DEFECT != 1
    STEP(flush_root());
#endif
    STEP(dropped[me] = 0; v[ITEM(me, NAME)] = 1);
#if DEFECT != 2
    STEP(flush_root());
#endif
    /* the menu has room for two at rest: the third goes before, by its entry alone */
#if DEFECT == 14
    STEP(vfirst = me);
#endif
#if DEFECT != 11
    STEP(v[ITEM(me, KERNEL)] = 1);
#endif
#if DEFECT != 10
    STEP(v[ITEM(me, ENTRY)] = 1);
#endif
#if DEFECT == 15
    STEP(d[ITEM(me, ENTRY)] = v[ITEM(me, ENTRY)]);
#elif DEFECT == 16
    STEP(d[ITEM(me, KERNEL)] = v[ITEM(me, KERNEL)]);
#elif DEFECT != 3
    STEP(flush_boot());
#endif
    STEP(vjournal = me; djournal = me);
    /* the switch: one byte in place */
#if DEFECT == 13
    STEP(vfirst = NONE);                       /* a rename over the file that FAT tears: for a moment there is none */
#endif
    STEP(vprev = old; vfirst = me; succeeded = NONE);
#if DEFECT == 10
    STEP(v[ITEM(me, ENTRY)] = 1);
#endif
#if DEFECT == 11
    STEP(v[ITEM(me, KERNEL)] = 1);
#endif
finish:
#if DEFECT == 5
    STEP(succeeded = me);
#endif
#if DEFECT != 4
    STEP(flush_boot());
#endif
    /* prune what neither boots nor is kept for rollback */
    for (x : 0 .. 2) {
        if
#if DEFECT == 8
        :: x != vfirst -> drop(x)
#elif DEFECT == 17
        :: x != me && x == vprev -> drop(x)
#else
        :: x != vfirst && x != vprev -> drop(x)
#endif
        :: else -> skip
        fi
    }
#if DEFECT == 18
    STEP(v[ITEM(me, CONTENT)] = 0);            /* a collector that does not know the newest image */
    STEP(v[ITEM(me, CONTENT)] = 1);
#endif
#if DEFECT != 4
    STEP(flush_boot());
#endif
    atomic {
        if
        :: ALIVE ->
           assert(vprev == NONE || WHOLE(v, vprev));   /* P4 */
           assert(vfirst == me);                       /* P5 */
           succeeded = vfirst; finished[me - 1] = 1; locked = 0; writers--
        :: else -> goto again
        fi
    }
}

inline settle(k) { if :: d[k] != v[k] -> if :: d[k] = v[k] :: v[k] = d[k] fi :: else -> skip fi }

proctype disaster() {
    byte k;
    do
    :: atomic {  /* kill -9 */
        epoch < CRASHES -> epoch++;
        assert(vfirst != NONE && WHOLE(v, vfirst));    /* P1 */
#if DEFECT != 19
        locked = 0;
#endif
        writers = 0
       }
    :: atomic {  /* power cut */
        epoch < CRASHES -> epoch++;
        for (k : 0 .. 11) { settle(k) }
        if :: dfirst != vfirst -> if :: dfirst = vfirst :: vfirst = dfirst fi :: else -> skip fi;
        if :: dprev != vprev -> if :: dprev = vprev :: vprev = dprev fi :: else -> skip fi;
        assert(vfirst != NONE && WHOLE(v, vfirst));    /* P1 */
        assert(succeeded == NONE || vfirst == succeeded);   /* P2 */
        for (k : 0 .. 2) { assert(dropped[k] || !d[ITEM(k, NAME)] || d[ITEM(k, CONTENT)]) }   /* P6 */
        vjournal = djournal; locked = 0; writers = 0; k = 0
       }
    :: break
    od
}

init {
    atomic {
        v[ITEM(0, CONTENT)] = 1; v[ITEM(0, NAME)] = 1; v[ITEM(0, KERNEL)] = 1; v[ITEM(0, ENTRY)] = 1;
        d[ITEM(0, CONTENT)] = 1; d[ITEM(0, NAME)] = 1; d[ITEM(0, KERNEL)] = 1; d[ITEM(0, ENTRY)] = 1;
        run updater(1); run updater(2); run disaster()
    }
}
