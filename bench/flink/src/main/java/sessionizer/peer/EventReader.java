package sessionizer.peer;

import java.io.IOException;
import java.time.LocalDate;
import java.time.OffsetDateTime;
import java.time.format.DateTimeParseException;
import org.apache.flink.api.common.serialization.AbstractDeserializationSchema;
import org.apache.flink.api.common.typeinfo.TypeHint;
import org.apache.flink.api.common.typeinfo.TypeInformation;
import org.apache.flink.api.java.tuple.Tuple2;
import org.apache.flink.shaded.jackson2.com.fasterxml.jackson.core.JsonFactory;
import org.apache.flink.shaded.jackson2.com.fasterxml.jackson.core.JsonParser;
import org.apache.flink.shaded.jackson2.com.fasterxml.jackson.core.JsonToken;

/** Bytes to (ip NUL host, milliseconds); null, which Flink skips, for a record that is not an event. */
final class EventReader extends AbstractDeserializationSchema<Tuple2<String, Long>> {
    private transient JsonFactory factory;

    EventReader() {
        super(TypeInformation.of(new TypeHint<Tuple2<String, Long>>() {}));
    }

    @Override
    public void open(InitializationContext context) {
        factory = new JsonFactory();
    }

    @Override
    public Tuple2<String, Long> deserialize(byte[] message) {
        if (message == null) {
            return null;
        }
        try (JsonParser parser = factory.createParser(message)) {
            return read(parser);
        } catch (IOException | DateTimeParseException notAnEvent) {
            return null;
        }
    }

    private static Tuple2<String, Long> read(JsonParser parser) throws IOException {
        String ip = null;
        String host = null;
        Long time = null;
        if (parser.nextToken() != JsonToken.START_OBJECT) {
            return null;
        }
        while (parser.nextToken() == JsonToken.FIELD_NAME) {
            String field = parser.currentName();
            JsonToken value = parser.nextToken();
            switch (field) {
                case "ip" -> ip = text(parser, value);
                case "host" -> host = text(parser, value);
                case "event_time" -> time = time(parser, value);
                default -> parser.skipChildren();
            }
        }
        boolean whole = ip != null && host != null && time != null;
        return whole ? Tuple2.of(ip + '\0' + host, time) : null;
    }

    private static String text(JsonParser parser, JsonToken value) throws IOException {
        parser.skipChildren();
        return value == JsonToken.VALUE_STRING ? parser.getText() : null;
    }

    private static Long time(JsonParser parser, JsonToken value) throws IOException {
        if (value == JsonToken.VALUE_NUMBER_INT) {
            return parser.getLongValue();
        }
        String text = text(parser, value);
        return text == null ? null : millis(text);
    }

    /** The form that all but a few have is read by position: java.time's parsers are slow. */
    static long millis(String text) {
        if (text.length() == 24 && text.charAt(10) == 'T' && text.charAt(23) == 'Z') {
            long day = LocalDate.of(number(text, 0, 4), number(text, 5, 7), number(text, 8, 10))
                    .toEpochDay();
            int minutes = number(text, 11, 13) * 60 + number(text, 14, 16);
            int millis = number(text, 17, 19) * 1_000 + number(text, 20, 23);
            return (day * 1_440 + minutes) * 60_000 + millis;
        }
        return OffsetDateTime.parse(text).toInstant().toEpochMilli();
    }

    private static int number(String text, int from, int to) {
        int number = 0;
        for (int at = from; at < to; at++) {
            int digit = text.charAt(at) - '0';
            if (digit < 0 || digit > 9) {
                throw new DateTimeParseException("not a digit", text, at);
            }
            number = number * 10 + digit;
        }
        return number;
    }
}
