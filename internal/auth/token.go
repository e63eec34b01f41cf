package auth

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"strings"

	"github.com/parry/parry/internal/parry"
)

const (
	tokenPrefix = "parry_"
	idLen       = 26
	secretLen   = 32 // 160 bits
	crcLen      = 7  // 32 bits
	tokenLen    = len(tokenPrefix) + idLen + 1 + secretLen + crcLen
)

const alphabet = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"

var crockford = base32.NewEncoding(alphabet).WithPadding(base32.NoPadding)

// Mint makes the text of a token with the id, which is shown once, and the hash to store.
func Mint(id parry.TokenID) (text string, hash [32]byte) {
	var b [secretLen * 5 / 8]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand ends the program instead
	secret := crockford.EncodeToString(b[:])
	body := tokenPrefix + strings.TrimPrefix(string(id), "t-") + "_" + secret
	return body + crc(body), sha256.Sum256([]byte(secret))
}

func crc(body string) string {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], crc32.ChecksumIEEE([]byte(body)))
	return crockford.EncodeToString(b[:])
}

var (
	errForm = errors.New("this is not a parry token: it reads parry_…, 72 characters in all")
	errCRC  = errors.New("the token has a typing error: its check digits do not match")
)

// parse splits a token's text. Its errors may be shown: they tell nothing that the caller does not hold.
func parse(text string) (id parry.TokenID, secret string, err error) {
	if len(text) != tokenLen || !strings.HasPrefix(text, tokenPrefix) || text[len(tokenPrefix)+idLen] != '_' {
		return "", "", errForm
	}
	body := text[:tokenLen-crcLen]
	if crc(body) != text[tokenLen-crcLen:] {
		return "", "", errCRC
	}
	name := text[len(tokenPrefix) : len(tokenPrefix)+idLen]
	if strings.Trim(name, alphabet) != "" { // anybody can reckon check digits for it
		return "", "", errForm
	}
	return parry.TokenID("t-" + name), body[len(body)-secretLen:], nil
}
