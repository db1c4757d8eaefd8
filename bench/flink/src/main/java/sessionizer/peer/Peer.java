package sessionizer.peer;

import java.util.Map;
import org.apache.flink.configuration.CheckpointingOptions;
import org.apache.flink.configuration.Configuration;
import org.apache.flink.configuration.CoreOptions;
import org.apache.flink.configuration.PipelineOptions;
import org.apache.flink.configuration.StateBackendOptions;
import org.apache.flink.streaming.api.environment.StreamExecutionEnvironment;

/**
 * Sessions of a Kafka topic into PostgreSQL on Flink, in one of two ways: {@code sql} is the Table
 * API's session window, {@code stream} the DataStream API by hand. Reads to the end of the topic as
 * it is at the start, and ends.
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
    // Many rows of a batch in one INSERT: the driver's own way to be fast.
    final String postgres = need("POSTGRES_URL") + "?reWriteBatchedInserts=true";

    public static void main(String[] args) throws Exception {
        Map<String, Job> jobs = Map.of("sql", SqlJob::run, "stream", StreamJob::run);
        if (args.length != 1 || !jobs.containsKey(args[0])) {
            System.err.println("usage: Peer sql|stream");
            System.exit(2);
        }
        jobs.get(args[0]).run(new Peer());
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
        var environment = StreamExecutionEnvironment.getExecutionEnvironment(settings);
        environment.enableCheckpointing(CHECKPOINT_EVERY_MS);
        return environment;
    }

    private static String need(String name) {
        String value = System.getenv(name);
        if (value == null || value.isEmpty()) {
            System.err.println(name + " is not set: see README.md");
            System.exit(2);
        }
        return value;
    }
}
