//! What to do about brokers that refuse a connection or do not answer, by librdkafka's words.

/// No request for a login is valid where a listener has none.
const NO_LOGIN: &str = "not valid in current SASL state";

/// The remedy where brokers answer, and refuse the connection.
pub fn of_refusal(why: &str) -> &'static str {
    if why.contains(NO_LOGIN) {
        return "this port takes no login: use the broker's port that does, or unset \
                KAFKA_WEB_TRAFFIC_KEY and KAFKA_WEB_TRAFFIC_SECRET";
    }
    if why.contains("supported mechanisms") {
        return "set one that the broker offers: --kafka-config sasl.mechanism=...";
    }
    if why.contains("certificate") {
        return "name the authority that signed the certificate: --kafka-config \
                ssl.ca.location=FILE; and use the host names of the certificate in KAFKA_URL";
    }
    "check KAFKA_WEB_TRAFFIC_KEY and KAFKA_WEB_TRAFFIC_SECRET, or the sasl.* and ssl.* settings \
     of --kafka-config"
}

/// The remedy where there is no answer, or none of Kafka.
pub fn of_silence(why: &str) -> &'static str {
    if why.contains("security.protocol") || why.contains("speak Kafka") {
        return "is the port one for TLS, or for a login? --kafka-config security.protocol=..., or \
                KAFKA_WEB_TRAFFIC_KEY and KAFKA_WEB_TRAFFIC_SECRET";
    }
    if why.contains("SSL connection closed") || why.contains("SSL handshake") {
        return "check KAFKA_URL, and whether its port is one for TLS: --kafka-config \
                security.protocol=sasl_plaintext is a login without it";
    }
    "check KAFKA_URL, that the brokers are up, and that their port is reachable from here"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_of_another_kind_is_recognized() {
        let no_login = "SASL PLAIN mechanism handshake failed: Broker: Request not valid in current \
                        SASL state: broker's supported mechanisms:";
        assert!(of_refusal(no_login).starts_with("this port takes no login"));
        let other = "SASL PLAIN mechanism handshake failed: Broker: Unsupported SASL mechanism: \
                     broker's supported mechanisms: SCRAM-SHA-512";
        assert!(of_refusal(other).contains("sasl.mechanism"));
        assert!(of_silence("Disconnected: SSL connection closed by peer").contains("one for TLS"));
        assert!(of_silence("Connection refused").contains("brokers are up"));
    }
}
