// What the tests of the real cluster run in its pods.
module hanmaru/tests/cluster/programs/probe

go 1.26.0
