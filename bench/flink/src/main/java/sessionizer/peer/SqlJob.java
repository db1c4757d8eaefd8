package sessionizer.peer;

import org.apache.flink.table.api.bridge.java.StreamTableEnvironment;

/** The job as people write it: two tables and a session window. */
final class SqlJob {
    private static final String BOUNDED =
            "'scan.startup.mode' = 'earliest-offset', 'scan.bounded.mode' = 'latest-offset'";
    private static final String LIVE =
            "'scan.startup.mode' = 'group-offsets', 'properties.auto.offset.reset' = 'earliest'";

    private SqlJob() {}

    static void run(Peer peer) throws Exception {
        var tables = StreamTableEnvironment.create(peer.environment());
        var settings = tables.getConfig();
        settings.set("table.local-time-zone", "UTC");
        // A session is written once, under its key: nothing to reconcile before the sink.
        settings.set("table.exec.sink.require-on-conflict", "false");
        settings.set("table.exec.sink.upsert-materialize", "NONE");
        tables.executeSql(
                """
                create table events (
                    ip string,
                    host string,
                    event_time timestamp_ltz(3),
                    watermark for event_time as event_time - interval '%d' second
                ) with (
                    'connector' = 'kafka',
                    'properties.bootstrap.servers' = '%s',
                    'properties.group.id' = '%s',
                    'topic' = '%s',
                    %s,
                    'format' = 'json',
                    'json.timestamp-format.standard' = 'ISO-8601',
                    'json.ignore-parse-errors' = 'true'
                )
                """
                        .formatted(
                                Peer.OUT_OF_ORDERNESS_MS / 1_000,
                                peer.brokers,
                                peer.group("peer-sql"),
                                peer.topic,
                                peer.live ? LIVE : BOUNDED));
        // The key makes it an upsert: after a failure, rows come again and must not double.
        tables.executeSql(
                """
                create table sessions (
                    ip string,
                    host string,
                    session_start timestamp(3),
                    session_end timestamp(3),
                    num_logs bigint,
                    primary key (ip, host, session_start) not enforced
                ) with (
                    'connector' = 'jdbc',
                    'url' = '%s',
                    'table-name' = '%s',
                    'username' = 'postgres',
                    'password' = 'postgres',
                    'sink.buffer-flush.max-rows' = '%d',
                    'sink.buffer-flush.interval' = '1s'
                )
                """
                        .formatted(peer.postgres, peer.table, Peer.ROWS_PER_BATCH));
        tables.executeSql(
                        """
                        insert into sessions
                        select ip, host, window_start, window_end, count(*)
                        from table(session(
                            DATA => table events partition by (ip, host),
                            TIMECOL => descriptor(event_time),
                            GAP => interval '%d' minutes))
                        group by ip, host, window_start, window_end
                        """
                                .formatted(Peer.GAP_MS / 60_000))
                .await();
    }
}
