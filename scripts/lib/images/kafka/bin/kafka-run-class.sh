#!/bin/bash
set -euo pipefail
# Options of Java are several words.
# shellcheck disable=SC2086
exec java ${KAFKA_HEAP_OPTS:-} -cp '/opt/kafka/libs/*' "$@"
