#!/usr/bin/env bash
# Grants a Kafka login the least rights that sessionizer needs, with Kafka's own tool:
#
#   KAFKA_ACLS="kafka-acls.sh --bootstrap-server broker-1:9092 --command-config admin.properties" \
#       deploy/kafka/acls.sh LOGIN TOPIC[,TOPIC...] GROUP
#
# READ on each topic, which implies DESCRIBE. Without it, the job does not start.
# READ on the consumer group (KAFKA_GROUP), to commit offsets for tools that show lag, and to begin
# where a group has stopped (--from group). Without it, the job runs and logs a warning.
# For `--from group:NAME` of another group, grant the same on that group, or only DESCRIBE.
#
# The job needs nothing else: no right on the cluster, none to write or create; it does not join the
# group. `sessionizer produce` needs rights of its own: WRITE and DESCRIBE on its topic, and CREATE
# if the topic does not exist yet.
set -euo pipefail

if (($# != 3)); then
    sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0" >&2
    exit 2
fi
login=$1 topics=$2 group=$3
read -ra acls <<<"${KAFKA_ACLS:-kafka-acls.sh --bootstrap-server ${KAFKA_URL:-localhost:9092}}"

wanted=()
IFS=, read -ra names <<<"$topics"
for topic in "${names[@]}"; do
    wanted+=(--topic "$topic")
done
"${acls[@]}" --add --allow-principal "User:$login" --operation Read "${wanted[@]}"
"${acls[@]}" --add --allow-principal "User:$login" --operation Read --group "$group"
