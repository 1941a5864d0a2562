// A peer with go-spiffe's verifier and with exported authenticators, told what to do by one JSON object a line
// on standard input; each is answered by one line on standard output.
package main

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"sort"
	"syscall"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

const patience = 10 * time.Second

type request struct {
	// verify, time, listen, accept, dial, handshakes, ask, prove, decline or judge.
	Do string
	// Certificates, the leaf first, and its key (PKCS#8): what is verified, or presented.
	Chain [][]byte
	Key   []byte
	// Trust anchors by trust domain.
	Bundles map[string][][]byte
	// Of dial: where to.
	Address string
	// Of dial and accept: the protocol, and the label of the exporter.
	Protocol, Label string
	// Of time and handshakes: how often.
	Times int
	// Of handshakes: what is presented each time, with its key read once.
	presented *tls.Certificate
	// Of ask, prove, decline and judge: which connection, as dial and accept have numbered it.
	Connection int
	// Of ask: its context, and the signature schemes that it offers.
	Context []byte
	Schemes []tls.SignatureScheme
	// Of prove, decline and judge: the authenticator request. Of judge: the authenticator.
	Request, Authenticator []byte
	// Of prove: what it does against the rules.
	Lies lies
}

type answer struct {
	// Why not; empty if all is well.
	Error string
	// Of verify and judge: whose chain it is. Of dial and accept: who the peer is.
	ID string `json:",omitempty"`
	// Of listen: where.
	Address string `json:",omitempty"`
	// Of dial and accept: what was negotiated, and 32 bytes of the exporter in hex.
	Group, Version, Exporter string `json:",omitempty"`
	Resumed                  bool
	// Of dial and accept: which connection it is, for what is proven on it later.
	Connection int
	state      tls.ConnectionState
	// Of ask, prove and decline: what to hand to the peer.
	Message []byte `json:",omitempty"`
	// Of judge: how it was signed.
	Scheme tls.SignatureScheme `json:",omitempty"`
	// Of time: nanoseconds of one verification, median. Of handshakes: of processor time of one, mean.
	Nanoseconds float64 `json:",omitempty"`
}

type peer struct {
	listener    *net.TCPListener
	connections []*connection
}

func main() {
	requests := bufio.NewScanner(os.Stdin)
	requests.Buffer(nil, 16<<20)
	answers := json.NewEncoder(os.Stdout)
	var peer peer
	for requests.Scan() {
		var request request
		answer := new(answer)
		err := json.Unmarshal(requests.Bytes(), &request)
		if err == nil {
			err = peer.do(&request, answer)
		}
		if err != nil {
			answer.Error = err.Error()
		}
		if err := answers.Encode(answer); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
}

func (p *peer) do(request *request, answer *answer) error {
	bundles, err := readBundles(request.Bundles)
	if err != nil {
		return err
	}
	switch request.Do {
	case "verify":
		id, _, err := x509svid.ParseAndVerify(request.Chain, bundles)
		answer.ID = id.String()
		return err
	case "time":
		return measure(request, bundles, answer)
	case "listen":
		p.listener, err = net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err == nil {
			answer.Address = p.listener.Addr().String()
		}
		return err
	case "accept":
		if err := p.accept(request, bundles, answer); err != nil {
			return err
		}
		p.keep(answer, false)
		return nil
	case "dial":
		if err := dial(request, bundles, answer); err != nil {
			return err
		}
		p.keep(answer, true)
		return nil
	case "handshakes":
		return handshakes(request, bundles, answer)
	case "ask", "prove", "decline", "judge":
		return p.authenticate(request, bundles, answer)
	}
	return fmt.Errorf("unknown request %q", request.Do)
}

func readBundles(named map[string][][]byte) (*x509bundle.Set, error) {
	bundles := x509bundle.NewSet()
	for name, anchors := range named {
		domain, err := spiffeid.TrustDomainFromString(name)
		if err != nil {
			return nil, err
		}
		bundle, err := x509bundle.ParseRaw(domain, bytes.Join(anchors, nil))
		if err != nil {
			return nil, err
		}
		bundles.Add(bundle)
	}
	return bundles, nil
}

// From the bytes that TLS hands over to the verdict, as a handshake does it.
func measure(request *request, bundles *x509bundle.Set, answer *answer) error {
	took := make([]float64, 0, request.Times)
	for range request.Times {
		began := time.Now()
		if _, _, err := x509svid.ParseAndVerify(request.Chain, bundles); err != nil {
			return err
		}
		took = append(took, float64(time.Since(began).Nanoseconds()))
	}
	sort.Float64s(took)
	if len(took) > 0 {
		answer.Nanoseconds = took[len(took)/2]
	}
	return nil
}

// Presents whatever it is told to, unlike an x509svid.SVID.
func certificate(request *request) (*tls.Certificate, error) {
	if request.presented != nil {
		return request.presented, nil
	}
	key, err := x509.ParsePKCS8PrivateKey(request.Key)
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: request.Chain, PrivateKey: key}, nil
}

func (p *peer) accept(request *request, bundles *x509bundle.Set, answer *answer) error {
	if p.listener == nil {
		return errors.New("nothing listens")
	}
	presented, err := certificate(request)
	if err != nil {
		return err
	}
	config := tlsconfig.MTLSWebServerConfig(presented, bundles, tlsconfig.AuthorizeAny())
	if err := p.listener.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	accepted, err := p.listener.Accept()
	if err != nil {
		return err
	}
	return meet(tls.Server(accepted, prepared(config, request)), request, answer)
}

func dial(request *request, bundles *x509bundle.Set, answer *answer) error {
	presented, err := certificate(request)
	if err != nil {
		return err
	}
	config := tlsconfig.TLSClientConfig(bundles, tlsconfig.AuthorizeAny())
	config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		return presented, nil
	}
	config.ServerName = "256.a.test"
	config.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	dialled, err := net.DialTimeout("tcp", request.Address, patience)
	if err != nil {
		return err
	}
	return meet(tls.Client(dialled, prepared(config, request)), request, answer)
}

// What is proven on a connection holds for its exporters, which outlive it.
func (p *peer) keep(answer *answer, client bool) {
	answer.Connection = len(p.connections)
	p.connections = append(p.connections, &connection{
		state: answer.state, client: client, done: make(map[string]bool),
	})
}

func (p *peer) authenticate(request *request, bundles *x509bundle.Set, answer *answer) (err error) {
	if request.Connection < 0 || request.Connection >= len(p.connections) {
		return errors.New("no such connection")
	}
	connection := p.connections[request.Connection]
	switch request.Do {
	case "ask":
		answer.Message = connection.ask(request.Context, request.Schemes)
		return nil
	case "prove":
		key, err := x509.ParsePKCS8PrivateKey(request.Key)
		if err != nil {
			return err
		}
		answer.Message, err = connection.prove(request.Request, request.Chain, key, request.Lies)
		return err
	case "decline":
		answer.Message, err = connection.decline(request.Request)
		return err
	}
	chain, scheme, err := connection.judge(request.Request, request.Authenticator)
	if err != nil {
		return err
	}
	id, _, err := x509svid.Verify(chain, bundles)
	answer.ID, answer.Scheme = id.String(), scheme
	return err
}

// Both ends on one core.
func handshakes(asked *request, bundles *x509bundle.Set, found *answer) error {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	var listening peer
	if err := listening.do(&request{Do: "listen"}, found); err != nil {
		return err
	}
	defer listening.listener.Close()
	asked.Address = found.Address
	presented, err := certificate(asked)
	if err != nil {
		return err
	}
	asked.presented = presented
	before := processorTime()
	for range asked.Times {
		accepted := make(chan error, 1)
		go func() { accepted <- listening.accept(asked, bundles, new(answer)) }()
		if err := dial(asked, bundles, found); err != nil {
			return err
		}
		if err := <-accepted; err != nil {
			return err
		}
	}
	found.Nanoseconds = float64(processorTime()-before) / float64(asked.Times)
	return nil
}

func processorTime() int64 {
	var used syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &used); err != nil {
		return 0
	}
	return used.Utime.Nano() + used.Stime.Nano()
}

func prepared(config *tls.Config, request *request) *tls.Config {
	config.MinVersion = tls.VersionTLS13
	config.NextProtos = []string{request.Protocol}
	return config
}

// A handshake and a byte each way: with TLS 1.3 a client learns only by reading that it was refused.
func meet(connection *tls.Conn, request *request, answer *answer) error {
	defer connection.Close()
	if err := connection.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if err := connection.Handshake(); err != nil {
		return err
	}
	if _, err := connection.Write([]byte{'x'}); err != nil {
		return err
	}
	if _, err := connection.Read(make([]byte, 1)); err != nil {
		return err
	}
	state := connection.ConnectionState()
	id, err := x509svid.IDFromCert(state.PeerCertificates[0])
	if err != nil {
		return err
	}
	exporter, err := state.ExportKeyingMaterial(request.Label, nil, 32)
	if err != nil {
		return err
	}
	answer.ID = id.String()
	answer.Group = state.CurveID.String()
	answer.Version = tls.VersionName(state.Version)
	answer.Exporter = hex.EncodeToString(exporter)
	answer.Resumed = state.DidResume
	answer.state = state
	return nil
}
