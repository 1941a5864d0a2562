// A peer with go-spiffe's verifier and exported authenticators, for the tests and benchmarks of ours. scripts/peers builds it.
module authd.test/peers/gospiffe

go 1.26.0

require github.com/spiffe/go-spiffe/v2 v2.9.0
