package sessionizer.peer;

import java.util.Map;
import java.util.Optional;
import org.apache.flink.configuration.CheckpointingOptions;
import org.apache.flink.configuration.Configuration;
import org.apache.flink.configuration.CoreOptions;
import org.apache.flink.configuration.ExternalizedCheckpointRetention;
import org.apache.flink.configuration.PipelineOptions;
import org.apache.flink.configuration.RestOptions;
import org.apache.flink.configuration.StateBackendOptions;
import org.apache.flink.configuration.StateRecoveryOptions;
import org.apache.flink.streaming.api.environment.StreamExecutionEnvironment;

/**
 * Sessions of a Kafka topic into PostgreSQL on Flink, in one of two ways: {@code sql} is the Table
 * API's session window, {@code stream} the DataStream API by hand. Reads to the end of the topic as
 * it is at the start, and ends.
 *
 * <p>With {@code live} after it, the job never ends by itself: it starts at the committed offsets of
 * the group, commits them with every checkpoint, and is stopped by Flink's own command line at
 * {@code PEER_REST_PORT}.
 *
 * <p>The whole cluster is this process: the mini cluster that {@code StreamExecutionEnvironment}
 * brings. It saves a second JVM and the network between them, so it is at its best here.
 */
public final class Peer {
    static final int PARALLELISM = 2;
    static final long GAP_MS = 300_000;
    static final long OUT_OF_ORDERNESS_MS = 15_000;
    static final long CHECKPOINT_EVERY_MS = 1_000;
    /** The connector's own choice is 100; what a second brings fits in here. */
    static final int ROWS_PER_BATCH = 5_000;

    final String brokers = need("KAFKA_URL");
    final String topic = need("KAFKA_TOPIC");
    final String table = need("PEER_TABLE");
    final String checkpoints = need("PEER_CHECKPOINTS");
    final boolean live;
    // Many rows of a batch in one INSERT: the driver's own way to be fast.
    final String postgres = need("POSTGRES_URL") + "?reWriteBatchedInserts=true";

    public static void main(String[] args) throws Exception {
        Map<String, Job> jobs = Map.of("sql", SqlJob::run, "stream", StreamJob::run);
        boolean live = args.length == 2 && args[1].equals("live");
        if (args.length < 1 || !jobs.containsKey(args[0]) || (args.length > 1 && !live)) {
            System.err.println("usage: Peer sql|stream [live]");
            System.exit(2);
        }
        jobs.get(args[0]).run(new Peer(live));
    }

    Peer(boolean live) {
        this.live = live;
    }

    /** The consumer group: when live, the one whose offsets are committed. */
    String group(String bounded) {
        return live ? need("KAFKA_GROUP") : bounded;
    }

    interface Job {
        void run(Peer peer) throws Exception;
    }

    StreamExecutionEnvironment environment() {
        Configuration settings = new Configuration();
        settings.set(CoreOptions.DEFAULT_PARALLELISM, PARALLELISM);
        // Records are not copied from operator to operator: neither job keeps hold of one.
        settings.set(PipelineOptions.OBJECT_REUSE, true);
        // On the heap: by far the faster of the two for what fits.
        settings.set(StateBackendOptions.STATE_BACKEND, "hashmap");
        settings.set(CheckpointingOptions.CHECKPOINT_STORAGE, "filesystem");
        settings.set(CheckpointingOptions.CHECKPOINTS_DIRECTORY, "file://" + checkpoints);
        if (live) {
            // Where `flink list` and `flink stop` find the job.
            settings.set(RestOptions.ADDRESS, "127.0.0.1");
            settings.set(RestOptions.PORT, Integer.parseInt(need("PEER_REST_PORT")));
            settings.set(RestOptions.BIND_PORT, need("PEER_REST_PORT"));
            settings.set(
                    CheckpointingOptions.EXTERNALIZED_CHECKPOINT_RETENTION,
                    ExternalizedCheckpointRetention.RETAIN_ON_CANCELLATION);
            optional("PEER_RESTORE")
                    .ifPresent(from -> settings.set(StateRecoveryOptions.SAVEPOINT_PATH, from));
        }
        var environment = StreamExecutionEnvironment.getExecutionEnvironment(settings);
        environment.enableCheckpointing(
                optional("PEER_CHECKPOINT_EVERY_MS").map(Long::valueOf).orElse(CHECKPOINT_EVERY_MS));
        return environment;
    }

    private static Optional<String> optional(String name) {
        return Optional.ofNullable(System.getenv(name)).filter(value -> !value.isEmpty());
    }

    private static String need(String name) {
        var value = optional(name);
        if (value.isEmpty()) {
            System.err.println(name + " is not set: see README.md");
            System.exit(2);
        }
        return value.get();
    }
}
