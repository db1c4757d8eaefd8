package sessionizer.peer;

import java.time.Duration;
import java.time.LocalDateTime;
import java.time.ZoneOffset;
import org.apache.flink.api.common.eventtime.WatermarkStrategy;
import org.apache.flink.api.common.typeinfo.Types;
import org.apache.flink.api.java.tuple.Tuple2;
import org.apache.flink.connector.jdbc.JdbcConnectionOptions;
import org.apache.flink.connector.jdbc.JdbcExecutionOptions;
import org.apache.flink.connector.jdbc.core.datastream.sink.JdbcSink;
import org.apache.flink.connector.kafka.source.KafkaSource;
import org.apache.flink.connector.kafka.source.enumerator.initializer.OffsetsInitializer;
import org.apache.kafka.clients.consumer.OffsetResetStrategy;

/**
 * The job by hand. What travels is the key as one string and the time, what is kept is a few
 * numbers a key ({@link Sessions}), and nothing else is decoded ({@link EventReader}).
 */
final class StreamJob {
    private StreamJob() {}

    static void run(Peer peer) throws Exception {
        var source =
                KafkaSource.<Tuple2<String, Long>>builder()
                        .setBootstrapServers(peer.brokers)
                        .setGroupId(peer.group("peer-stream"))
                        .setTopics(peer.topic)
                        .setValueOnlyDeserializer(new EventReader());
        if (peer.live) {
            source.setStartingOffsets(
                    OffsetsInitializer.committedOffsets(OffsetResetStrategy.EARLIEST));
        } else {
            source.setStartingOffsets(OffsetsInitializer.earliest())
                    .setBounded(OffsetsInitializer.latest());
        }
        var watermarks =
                WatermarkStrategy.<Tuple2<String, Long>>forBoundedOutOfOrderness(
                                Duration.ofMillis(Peer.OUT_OF_ORDERNESS_MS))
                        .withTimestampAssigner((event, kafka) -> event.f1);
        var sink =
                JdbcSink.<Sessions.Session>builder()
                        .withQueryStatement(
                                ("insert into %s (ip, host, session_start, session_end, num_logs)"
                                                + " values (?, ?, ?, ?, ?)"
                                                + " on conflict (ip, host, session_start) do update"
                                                + " set session_end = excluded.session_end,"
                                                + " num_logs = excluded.num_logs")
                                        .formatted(peer.table),
                                (statement, session) -> {
                                    int nul = session.key.indexOf('\0');
                                    statement.setString(1, session.key.substring(0, nul));
                                    statement.setString(2, session.key.substring(nul + 1));
                                    statement.setObject(3, time(session.start));
                                    statement.setObject(4, time(session.end));
                                    statement.setLong(5, session.events);
                                })
                        .withExecutionOptions(
                                JdbcExecutionOptions.builder()
                                        .withBatchSize(Peer.ROWS_PER_BATCH)
                                        .withBatchIntervalMs(1_000)
                                        .build())
                        .buildAtLeastOnce(
                                new JdbcConnectionOptions.JdbcConnectionOptionsBuilder()
                                        .withUrl(peer.postgres)
                                        .withUsername("postgres")
                                        .withPassword("postgres")
                                        .build());
        var environment = peer.environment();
        environment
                .fromSource(source.build(), watermarks, "events")
                .keyBy(event -> event.f0, Types.STRING)
                .process(new Sessions())
                .sinkTo(sink);
        environment.execute("sessions");
    }

    private static LocalDateTime time(long millis) {
        long seconds = Math.floorDiv(millis, 1_000);
        int nanos = (int) Math.floorMod(millis, 1_000) * 1_000_000;
        return LocalDateTime.ofEpochSecond(seconds, nanos, ZoneOffset.UTC);
    }
}
