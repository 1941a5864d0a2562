// Exported authenticators over TLS 1.3 on the standard library's TLS, written from the text of RFC 9261 and
// RFC 8446 without a look at ours. Sections without a document are those of RFC 9261.
package main

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	_ "crypto/sha256"
	_ "crypto/sha512"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// Types of handshake messages: RFC 8446, section 4, and section 8.3.
const (
	certificateType              = 11
	certificateRequestType       = 13
	certificateVerifyType        = 15
	clientCertificateRequestType = 17
	finishedType                 = 20
)

// The extensions by which a request offers signature schemes, the second those of certificates if they are
// others: RFC 8446, section 4.2.3.
const (
	signatureAlgorithms     = 13
	signatureAlgorithmsCert = 50
)

type connection struct {
	state tls.ConnectionState
	// Whether this end is the client.
	client bool
	// Contexts of the authenticators made or found valid here: each is for one alone (section 5.2).
	done map[string]bool
}

// What a prover may be told to do against the rules, with signature and Finished right all the same.
type lies struct {
	// To answer another context than the request's.
	Context []byte
	// To sign by this scheme, asked for or not.
	Scheme tls.SignatureScheme
	// To send extensions with the leaf, which nobody asked for.
	Extensions []byte
	// To derive keys from the labels of the other end.
	Role bool
}

// What an end's authenticators are made with: section 5.1.
type keys struct {
	hash crypto.Hash
	// Handshake Context, and Finished MAC Key.
	context, finished []byte
}

func (c *connection) keys(client bool) (*keys, error) {
	if c.state.Version != tls.VersionTLS13 {
		return nil, errors.New("not TLS 1.3")
	}
	keys := new(keys)
	switch c.state.CipherSuite {
	case tls.TLS_AES_128_GCM_SHA256, tls.TLS_CHACHA20_POLY1305_SHA256:
		keys.hash = crypto.SHA256
	case tls.TLS_AES_256_GCM_SHA384:
		keys.hash = crypto.SHA384
	default:
		return nil, errors.New("unknown cipher suite")
	}
	end := "server"
	if client {
		end = "client"
	}
	var err error
	keys.context, err = c.state.ExportKeyingMaterial(
		"EXPORTER-"+end+" authenticator handshake context", nil, keys.hash.Size())
	if err != nil {
		return nil, err
	}
	keys.finished, err = c.state.ExportKeyingMaterial(
		"EXPORTER-"+end+" authenticator finished key", nil, keys.hash.Size())
	return keys, err
}

func (k *keys) transcript(messages ...[]byte) []byte {
	hash := k.hash.New()
	hash.Write(k.context)
	for _, message := range messages {
		hash.Write(message)
	}
	return hash.Sum(nil)
}

// What CertificateVerify signs: section 5.2.2.
func (k *keys) signed(request, certificate []byte) []byte {
	return slices.Concat(bytes.Repeat([]byte{' '}, 64), []byte("Exported Authenticator\x00"),
		k.transcript(request, certificate))
}

// What Finished says: section 5.2.3.
func (k *keys) mac(messages ...[]byte) []byte {
	mac := hmac.New(k.hash.New, k.finished)
	mac.Write(k.transcript(messages...))
	return mac.Sum(nil)
}

// Section 4: an end asks by the message of its own role.
func (c *connection) ask(context []byte, schemes []tls.SignatureScheme) []byte {
	var offered []byte
	for _, scheme := range schemes {
		offered = binary.BigEndian.AppendUint16(offered, uint16(scheme))
	}
	extension := slices.Concat([]byte{0, signatureAlgorithms}, vector(2, vector(2, offered)))
	return message(requestType(c.client), vector(1, context), vector(2, extension))
}

func requestType(client bool) byte {
	if client {
		return clientCertificateRequestType
	}
	return certificateRequestType
}

// Sections 5.2 and 5.2.4.
func (c *connection) prove(asked []byte, chain [][]byte, key any, lies lies) ([]byte, error) {
	request, err := parseRequest(requestType(!c.client), asked)
	if err != nil {
		return nil, err
	}
	if c.done[string(request.context)] {
		return nil, errors.New("this context has been answered")
	}
	parsed, err := x509.ParseCertificates(slices.Concat(chain...))
	if err != nil {
		return nil, err
	}
	if err := request.checkChain(parsed); err != nil {
		return nil, err
	}
	keys, err := c.keys(c.client != lies.Role)
	if err != nil {
		return nil, err
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, errors.New("the key does not sign")
	}
	scheme := lies.Scheme
	if scheme == 0 {
		chosen := slices.IndexFunc(request.schemes, func(scheme tls.SignatureScheme) bool {
			return fits(scheme, signer.Public())
		})
		if chosen < 0 {
			return nil, errors.New("the key fits none of the schemes asked for")
		}
		scheme = request.schemes[chosen]
	}
	context := request.context
	if lies.Context != nil {
		context = lies.Context
	}
	certificate := certificateMessage(context, chain, lies.Extensions)
	signature, err := sign(scheme, signer, keys.signed(asked, certificate))
	if err != nil {
		return nil, err
	}
	verify := message(certificateVerifyType,
		binary.BigEndian.AppendUint16(nil, uint16(scheme)), vector(2, signature))
	c.done[string(request.context)] = true
	finished := message(finishedType, keys.mac(asked, certificate, verify))
	return slices.Concat(certificate, verify, finished), nil
}

// An empty authenticator: section 6.
func (c *connection) decline(asked []byte) ([]byte, error) {
	request, err := parseRequest(requestType(!c.client), asked)
	if err != nil {
		return nil, err
	}
	keys, err := c.keys(c.client)
	if err != nil {
		return nil, err
	}
	return message(finishedType, keys.mac(asked, certificateMessage(request.context, nil, nil))), nil
}

// RFC 8446, section 4.4.2.
func certificateMessage(context []byte, chain [][]byte, extensions []byte) []byte {
	var list []byte
	for _, certificate := range chain {
		list = slices.Concat(list, vector(3, certificate), vector(2, extensions))
		extensions = nil
	}
	return message(certificateType, vector(1, context), vector(3, list))
}

// Section 7.4, for the peer's authenticator. Whether the certificates are to be believed is for the caller.
func (c *connection) judge(asked, authenticator []byte) ([]*x509.Certificate, tls.SignatureScheme, error) {
	request, err := parseRequest(requestType(c.client), asked)
	if err != nil {
		return nil, 0, err
	}
	if c.done[string(request.context)] {
		return nil, 0, errors.New("this context has been answered")
	}
	keys, err := c.keys(!c.client)
	if err != nil {
		return nil, 0, err
	}
	messages, err := parseMessages(authenticator)
	if err != nil {
		return nil, 0, err
	}
	if len(messages) == 1 && messages[0].kind == finishedType {
		empty := keys.mac(asked, certificateMessage(request.context, nil, nil))
		if hmac.Equal(messages[0].body, empty) {
			return nil, 0, errors.New("the peer proves nothing")
		}
		return nil, 0, errors.New("an empty authenticator with a wrong Finished")
	}
	if len(messages) != 3 || messages[0].kind != certificateType ||
		messages[1].kind != certificateVerifyType || messages[2].kind != finishedType {
		return nil, 0, errors.New("not Certificate, CertificateVerify and Finished")
	}
	certificate, verify, finished := messages[0], messages[1], messages[2]
	chain, err := request.parseCertificate(certificate.body)
	if err != nil {
		return nil, 0, err
	}
	scheme, err := request.checkSignature(verify.body, chain[0], keys.signed(asked, certificate.whole))
	if err != nil {
		return nil, 0, err
	}
	if !hmac.Equal(finished.body, keys.mac(asked, certificate.whole, verify.whole)) {
		return nil, 0, errors.New("a wrong Finished")
	}
	c.done[string(request.context)] = true
	return chain, scheme, nil
}

// What a request asks for.
type wanted struct {
	context []byte
	// How the answer may be signed, and how its certificates.
	schemes, certificates []tls.SignatureScheme
	// Types of all its extensions.
	extensions []uint16
}

func parseRequest(kind byte, request []byte) (*wanted, error) {
	messages, err := parseMessages(request)
	if err != nil {
		return nil, err
	}
	if len(messages) != 1 || messages[0].kind != kind {
		return nil, fmt.Errorf("not one request of type %d", kind)
	}
	rest := reader(messages[0].body)
	wanted := new(wanted)
	if wanted.context, err = rest.vector(1); err != nil {
		return nil, err
	}
	extensions, err := rest.vector(2)
	if err != nil {
		return nil, err
	}
	if len(rest) > 0 {
		return nil, errors.New("something follows the extensions")
	}
	err = parseExtensions(extensions, func(kind uint16, data reader) error {
		wanted.extensions = append(wanted.extensions, kind)
		var err error
		switch kind {
		case signatureAlgorithms:
			wanted.schemes, err = parseSchemes(data)
		case signatureAlgorithmsCert:
			wanted.certificates, err = parseSchemes(data)
		}
		return err
	})
	if err == nil && wanted.schemes == nil {
		err = errors.New("a request without signature schemes")
	}
	if wanted.certificates == nil {
		wanted.certificates = wanted.schemes
	}
	return wanted, err
}

func parseSchemes(data reader) ([]tls.SignatureScheme, error) {
	offered, err := data.vector(2)
	if err != nil {
		return nil, err
	}
	if len(data) > 0 || len(offered) == 0 || len(offered)%2 != 0 {
		return nil, errors.New("not a list of signature schemes")
	}
	var schemes []tls.SignatureScheme
	for ; len(offered) > 0; offered = offered[2:] {
		schemes = append(schemes, tls.SignatureScheme(binary.BigEndian.Uint16(offered)))
	}
	return schemes, nil
}

// Section 5.2.1.
func (w *wanted) parseCertificate(body reader) ([]*x509.Certificate, error) {
	context, err := body.vector(1)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(context, w.context) {
		return nil, errors.New("the context of another request")
	}
	list, err := body.vector(3)
	if err != nil {
		return nil, err
	}
	if len(body) > 0 {
		return nil, errors.New("something follows the certificates")
	}
	if len(list) == 0 {
		return nil, errors.New("no certificate")
	}
	var chain []*x509.Certificate
	for len(list) > 0 {
		data, err := list.vector(3)
		if err != nil {
			return nil, err
		}
		certificate, err := x509.ParseCertificate(data)
		if err != nil {
			return nil, err
		}
		chain = append(chain, certificate)
		extensions, err := list.vector(2)
		if err != nil {
			return nil, err
		}
		err = parseExtensions(extensions, func(kind uint16, _ reader) error {
			if !slices.Contains(w.extensions, kind) {
				return fmt.Errorf("extension %d, which was not asked for", kind)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return chain, nil
}

// By which scheme a certificate is signed, as far as it says so itself.
var ofCertificates = map[x509.SignatureAlgorithm]tls.SignatureScheme{
	x509.SHA256WithRSA:    tls.PKCS1WithSHA256,
	x509.SHA384WithRSA:    tls.PKCS1WithSHA384,
	x509.SHA512WithRSA:    tls.PKCS1WithSHA512,
	x509.SHA256WithRSAPSS: tls.PSSWithSHA256,
	x509.SHA384WithRSAPSS: tls.PSSWithSHA384,
	x509.SHA512WithRSAPSS: tls.PSSWithSHA512,
	x509.ECDSAWithSHA256:  tls.ECDSAWithP256AndSHA256,
	x509.ECDSAWithSHA384:  tls.ECDSAWithP384AndSHA384,
	x509.ECDSAWithSHA512:  tls.ECDSAWithP521AndSHA512,
	x509.PureEd25519:      tls.Ed25519,
}

// What a prover must see to (section 5.2.1), and no verifier (section 5.2.4). RFC 8446, section 4.4.2.2, doesn't
// mind how those are signed that sign themselves.
func (w *wanted) checkChain(chain []*x509.Certificate) error {
	for _, certificate := range chain {
		scheme, known := ofCertificates[certificate.SignatureAlgorithm]
		itself := bytes.Equal(certificate.RawIssuer, certificate.RawSubject)
		if !itself && (!known || !slices.Contains(w.certificates, scheme)) {
			return fmt.Errorf("a certificate signed by %v, which was not asked for", certificate.SignatureAlgorithm)
		}
	}
	return nil
}

// Section 5.2.2.
func (w *wanted) checkSignature(body reader, leaf *x509.Certificate, signed []byte) (tls.SignatureScheme, error) {
	algorithm, err := body.take(2)
	if err != nil {
		return 0, err
	}
	signature, err := body.vector(2)
	if err != nil {
		return 0, err
	}
	if len(body) > 0 {
		return 0, errors.New("something follows the signature")
	}
	scheme := tls.SignatureScheme(binary.BigEndian.Uint16(algorithm))
	if !slices.Contains(w.schemes, scheme) {
		return 0, fmt.Errorf("%v, which was not asked for", scheme)
	}
	// RFC 8446, section 4.4.2.2.
	if leaf.KeyUsage != 0 && leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0 {
		return 0, errors.New("a key that is not for signatures")
	}
	return scheme, check(scheme, leaf.PublicKey, signed, signature)
}

// The schemes of TLS 1.3 (RFC 8446, section 4.2.3) with a key that certificates usually have.
func digest(scheme tls.SignatureScheme) (crypto.Hash, bool) {
	switch scheme {
	case tls.PSSWithSHA256, tls.ECDSAWithP256AndSHA256:
		return crypto.SHA256, true
	case tls.PSSWithSHA384, tls.ECDSAWithP384AndSHA384:
		return crypto.SHA384, true
	case tls.PSSWithSHA512, tls.ECDSAWithP521AndSHA512:
		return crypto.SHA512, true
	case tls.Ed25519:
		return 0, true
	}
	return 0, false
}

func fits(scheme tls.SignatureScheme, key crypto.PublicKey) bool {
	switch key := key.(type) {
	case *ecdsa.PublicKey:
		switch scheme {
		case tls.ECDSAWithP256AndSHA256:
			return key.Curve == elliptic.P256()
		case tls.ECDSAWithP384AndSHA384:
			return key.Curve == elliptic.P384()
		case tls.ECDSAWithP521AndSHA512:
			return key.Curve == elliptic.P521()
		}
	case ed25519.PublicKey:
		return scheme == tls.Ed25519
	case *rsa.PublicKey:
		return scheme == tls.PSSWithSHA256 || scheme == tls.PSSWithSHA384 || scheme == tls.PSSWithSHA512
	}
	return false
}

func sign(scheme tls.SignatureScheme, key crypto.Signer, signed []byte) ([]byte, error) {
	hash, known := digest(scheme)
	if !known {
		return nil, fmt.Errorf("unknown scheme %v", scheme)
	}
	var options crypto.SignerOpts = hash
	if _, ok := key.Public().(*rsa.PublicKey); ok {
		options = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: hash}
	}
	return key.Sign(rand.Reader, hashed(hash, signed), options)
}

func check(scheme tls.SignatureScheme, key crypto.PublicKey, signed, signature []byte) error {
	hash, known := digest(scheme)
	if !known || !fits(scheme, key) {
		return fmt.Errorf("%v does not fit the key", scheme)
	}
	right := false
	switch key := key.(type) {
	case *ecdsa.PublicKey:
		right = ecdsa.VerifyASN1(key, hashed(hash, signed), signature)
	case ed25519.PublicKey:
		right = ed25519.Verify(key, signed, signature)
	case *rsa.PublicKey:
		options := &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}
		right = rsa.VerifyPSS(key, hash, hashed(hash, signed), signature, options) == nil
	}
	if !right {
		return errors.New("a wrong signature")
	}
	return nil
}

func hashed(hash crypto.Hash, signed []byte) []byte {
	if hash == 0 {
		return signed
	}
	hasher := hash.New()
	hasher.Write(signed)
	return hasher.Sum(nil)
}

// RFC 8446, section 4: a type, and a length of three bytes.
func message(kind byte, body ...[]byte) []byte {
	return slices.Concat([]byte{kind}, vector(3, slices.Concat(body...)))
}

// RFC 8446, section 3.4: a length in so many bytes, and as much.
func vector(width int, content []byte) []byte {
	length := binary.BigEndian.AppendUint64(nil, uint64(len(content)))
	return slices.Concat(length[8-width:], content)
}

type handshakeMessage struct {
	kind        byte
	body, whole reader
}

func parseMessages(rest reader) ([]handshakeMessage, error) {
	var messages []handshakeMessage
	for len(rest) > 0 {
		began := rest
		kind, err := rest.take(1)
		if err != nil {
			return nil, err
		}
		body, err := rest.vector(3)
		if err != nil {
			return nil, err
		}
		messages = append(messages, handshakeMessage{kind[0], body, began[:len(began)-len(rest)]})
	}
	return messages, nil
}

// RFC 8446, section 4.2: none comes twice.
func parseExtensions(block reader, each func(kind uint16, data reader) error) error {
	seen := make(map[uint16]bool)
	for len(block) > 0 {
		kind, err := block.take(2)
		if err != nil {
			return err
		}
		data, err := block.vector(2)
		if err != nil {
			return err
		}
		number := binary.BigEndian.Uint16(kind)
		if seen[number] {
			return fmt.Errorf("extension %d twice", number)
		}
		seen[number] = true
		if err := each(number, data); err != nil {
			return err
		}
	}
	return nil
}

type reader []byte

func (r *reader) take(count int) (reader, error) {
	if count > len(*r) {
		return nil, errors.New("cut short")
	}
	taken := (*r)[:count]
	*r = (*r)[count:]
	return taken, nil
}

func (r *reader) vector(width int) (reader, error) {
	prefix, err := r.take(width)
	if err != nil {
		return nil, err
	}
	length := 0
	for _, octet := range prefix {
		length = length<<8 | int(octet)
	}
	return r.take(length)
}
