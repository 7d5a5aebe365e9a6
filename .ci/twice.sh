# Sourced by the scripts beside it, which set $scratch, a folder.

# What has to be done or known before tests are run again; a script may put its own in place of it.
before_again() { :; }

# Runs a command that ends in pytest, and what failed once more, alone and not in several processes. A test that fails twice
# fails the run; one that fails once is named, as work to be done: this machine has two processors and other guests, and tests
# kill, stop and time out. Status 1 says that all tests were run and some failed; after any other there is more to run.
twice() {
    local status=0
    "$@" || status=$?
    if [ $status != 1 ]; then return $status; fi
    before_again
    printf '\n==== FAILED ONCE, see above; again, alone:\n'
    "$@" -n 0 -v --last-failed --last-failed-no-failures none --figures="$scratch/again.json" # the counts are the first run's
}
