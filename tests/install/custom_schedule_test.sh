#!/bin/sh
# Usage: custom_schedule_test.sh CSV PROGRAM     Trains with the program's schedule, which ends well if
# the losses are those of 1F1B; and the schedule is the one in the file.
set -eu
"$2"
"$2" csv | cmp - "$1"
