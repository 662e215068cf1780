package store

import (
	"encoding/binary"
	"errors"
	"io"
	"os"
)

const (
	walHeaderSize = 32
	frameHeader   = 24
)

// checkWAL finds damage in a log that was not folded into the database. SQLite reads a
// log up to the first frame whose checksum is wrong and takes that for the end: rightly,
// after a crash in the middle of a write; wrongly, if a bit flipped in the middle of
// commits that were acknowledged, which would then be lost without a word.
//
// A frame's checksum goes on from the one before, so frames after a damaged one can be
// checked with its stored sum. If a whole commit with a frame after it follows the first
// bad frame, that commit was fsynced before that next frame was written: the bad frame is
// not the torn end of the last write. (Format: https://www.sqlite.org/fileformat2.html §4.)
// Damage in the very last commit cannot be told from a torn write.
func checkWAL(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return diskError(err, path)
	}
	defer f.Close()
	h := make([]byte, walHeaderSize)
	if _, err := io.ReadFull(f, h); err != nil {
		return nil // shorter than a header: nothing was committed to it
	}
	order, ok := walOrder(h)
	size := int(binary.BigEndian.Uint32(h[8:]))
	if !ok || size < 512 || size > 65536 || size&(size-1) != 0 {
		return walHeaderDamage(f, path)
	}
	sum := walSum(order, [2]uint32{}, h[:24])
	if sum != storedSum(h[24:]) {
		return walHeaderDamage(f, path)
	}
	return checkFrames(f, path, order, h[16:24], size, sum)
}

// walHeaderDamage: a header is written and fsynced before the first commit in its log, so
// a bad one with frames behind it is damage.
func walHeaderDamage(f *os.File, path string) error {
	fi, err := f.Stat()
	if err != nil {
		return diskError(err, path)
	}
	if fi.Size() <= walHeaderSize {
		return nil
	}
	return ErrCorrupt.With("%s: a damaged header, at offset 0", path)
}

func checkFrames(f *os.File, path string, order binary.ByteOrder, salt []byte, pageSize int, sum [2]uint32) error {
	buf := make([]byte, frameHeader+pageSize)
	bad := int64(-1)   // offset of the first bad frame
	committed := false // a good commit was seen after it
	for off := int64(walHeaderSize); ; off += int64(len(buf)) {
		if _, err := io.ReadFull(f, buf); err != nil {
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				return nil
			}
			return diskError(err, path)
		}
		good := string(buf[8:16]) == string(salt)
		if good {
			got := walSum(order, sum, buf[:8])
			got = walSum(order, got, buf[frameHeader:])
			good = got == storedSum(buf[16:])
		}
		switch {
		case !good && bad < 0:
			bad = off
		case good && bad >= 0 && committed:
			return ErrCorrupt.With("%s: a damaged commit, at offset %d", path, bad)
		case good && bad >= 0:
			committed = binary.BigEndian.Uint32(buf[4:]) != 0
		case !good:
			committed = false
		}
		// The stored sum carries on over a bad frame, if that frame is of this log at all.
		sum = storedSum(buf[16:])
	}
}

// walOrder is the byte order in which checksums are computed.
func walOrder(h []byte) (binary.ByteOrder, bool) {
	switch binary.BigEndian.Uint32(h) {
	case 0x377f0682:
		return binary.LittleEndian, true
	case 0x377f0683:
		return binary.BigEndian, true
	}
	return nil, false
}

func storedSum(b []byte) [2]uint32 {
	return [2]uint32{binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[4:])}
}

// walSum goes on with SQLite's checksum over b, whose length is a multiple of 8.
func walSum(order binary.ByteOrder, s [2]uint32, b []byte) [2]uint32 {
	s0, s1 := s[0], s[1]
	for i := 0; i < len(b); i += 8 {
		s0 += order.Uint32(b[i:]) + s1
		s1 += order.Uint32(b[i+4:]) + s0
	}
	return [2]uint32{s0, s1}
}
