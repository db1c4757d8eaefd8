package sessionizer.peer;

import org.apache.flink.api.common.functions.OpenContext;
import org.apache.flink.api.common.state.ValueState;
import org.apache.flink.api.common.state.ValueStateDescriptor;
import org.apache.flink.api.common.typeinfo.PrimitiveArrayTypeInfo;
import org.apache.flink.api.java.tuple.Tuple2;
import org.apache.flink.streaming.api.functions.KeyedProcessFunction;
import org.apache.flink.util.Collector;

/**
 * Sessions of a key, as Flink's session windows have them: events at most the gap apart are one,
 * and an event whose session has closed is dropped.
 *
 * <p>A key's value holds three numbers for each of its open sessions, nearly always one: first
 * event, last event, how many. A timer is set when a session begins, not moved when it grows: when
 * it fires too soon, the next is set for the end as it is then. That is one or two timers a session
 * instead of two calls an event.
 */
final class Sessions extends KeyedProcessFunction<String, Tuple2<String, Long>, Sessions.Session> {
    /** A session that has closed. */
    public static final class Session {
        public String key;
        public long start;
        public long end;
        public long events;
    }

    private static final int FIELDS = 3;
    private static final int FIRST = 0;
    private static final int LAST = 1;
    private static final int EVENTS = 2;

    private transient ValueState<long[]> open;

    @Override
    public void open(OpenContext context) {
        open =
                getRuntimeContext()
                        .getState(
                                new ValueStateDescriptor<>(
                                        "open",
                                        PrimitiveArrayTypeInfo.LONG_PRIMITIVE_ARRAY_TYPE_INFO));
    }

    @Override
    public void processElement(Tuple2<String, Long> event, Context context, Collector<Session> out)
            throws Exception {
        long time = event.f1;
        long watermark = context.timerService().currentWatermark();
        long[] sessions = open.value();
        if (sessions != null && sessions.length == FIELDS && joins(sessions, 0, time, time)) {
            // The path of nearly all events. A new array: a checkpoint may be reading the old one.
            open.update(
                    new long[] {
                        Math.min(sessions[FIRST], time),
                        Math.max(sessions[LAST], time),
                        sessions[EVENTS] + 1
                    });
            return;
        }
        long first = time;
        long last = time;
        long events = 1;
        int apart = 0;
        long[] merged = new long[(sessions == null ? 0 : sessions.length) + FIELDS];
        // Open sessions never touch each other, so what does not touch the event stays apart.
        for (int at = 0; sessions != null && at < sessions.length; at += FIELDS) {
            if (joins(sessions, at, time, time)) {
                first = Math.min(first, sessions[at + FIRST]);
                last = Math.max(last, sessions[at + LAST]);
                events += sessions[at + EVENTS];
            } else {
                System.arraycopy(sessions, at, merged, apart, FIELDS);
                apart += FIELDS;
            }
        }
        if (timer(last) <= watermark) {
            return; // Too late: there is nothing open that it joins.
        }
        merged[apart + FIRST] = first;
        merged[apart + LAST] = last;
        merged[apart + EVENTS] = events;
        open.update(java.util.Arrays.copyOf(merged, apart + FIELDS));
        if (events == 1) {
            context.timerService().registerEventTimeTimer(timer(last));
        }
    }

    @Override
    public void onTimer(long at, OnTimerContext context, Collector<Session> out) throws Exception {
        long[] sessions = open.value();
        if (sessions == null) {
            return;
        }
        long watermark = context.timerService().currentWatermark();
        long[] left = new long[sessions.length];
        int length = 0;
        for (int i = 0; i < sessions.length; i += FIELDS) {
            long due = timer(sessions[i + LAST]);
            if (due > watermark) {
                System.arraycopy(sessions, i, left, length, FIELDS);
                length += FIELDS;
                // There may be one for this moment already; then this changes nothing.
                context.timerService().registerEventTimeTimer(due);
                continue;
            }
            Session session = new Session();
            session.key = context.getCurrentKey();
            session.start = sessions[i + FIRST];
            session.end = sessions[i + LAST] + Peer.GAP_MS;
            session.events = sessions[i + EVENTS];
            out.collect(session);
        }
        if (length == 0) {
            open.clear();
        } else if (length < sessions.length) {
            open.update(java.util.Arrays.copyOf(left, length));
        }
    }

    /** The last millisecond of the window of a session. */
    private static long timer(long last) {
        return last + Peer.GAP_MS - 1;
    }

    private static boolean joins(long[] sessions, int at, long first, long last) {
        return first <= sessions[at + LAST] + Peer.GAP_MS
                && sessions[at + FIRST] <= last + Peer.GAP_MS;
    }
}
