package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"mime"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"unicode/utf8"

	"github.com/a2aproject/a2a-go/v2/a2apb/v1"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/shoalmesh/shoal"
)

const (
	// maxInline is the largest file that travels inside a message; larger ones need the
	// blobs of a later version.
	maxInline = 64 << 10
	// maxText bounds TEXT and stdin: what does not fit an envelope cannot be sent.
	maxText = shoal.MaxBody - 8<<10
)

// message makes the message of TEXT, --data and --file.
func (a *app) message(cmd *cobra.Command, args []string, data string, files []string) (*a2apb.Message, error) {
	if err := arguments(0, "TEXT")(cmd, args); err != nil {
		return nil, err
	}
	msg := &a2apb.Message{Role: a2apb.Role_ROLE_USER}
	if len(args) > 0 {
		text, err := a.text(args[0])
		if err != nil {
			return nil, err
		}
		msg.Parts = append(msg.Parts, &a2apb.Part{Content: &a2apb.Part_Text{Text: text}})
	}
	if cmd.Flags().Changed("data") {
		value, err := dataValue(data)
		if err != nil {
			return nil, err
		}
		msg.Parts = append(msg.Parts, &a2apb.Part{Content: &a2apb.Part_Data{Data: value}, MediaType: "application/json"})
	}
	total := 0
	for _, path := range files {
		part, err := filePart(path)
		if err != nil {
			return nil, err
		}
		if total += len(part.GetRaw()); total > maxText {
			return nil, usage("send fewer at a time", "the files together are over %s", size(maxText))
		}
		msg.Parts = append(msg.Parts, part)
	}
	if len(msg.GetParts()) == 0 {
		return nil, usage("give a TEXT (\"-\" reads it from stdin), --data JSON or --file PATH", "there is nothing to send")
	}
	return msg, nil
}

// text is TEXT, or stdin for "-".
func (a *app) text(arg string) (string, error) {
	if arg == "-" {
		b, err := io.ReadAll(io.LimitReader(a.in, maxText+1))
		if err != nil {
			return "", fmt.Errorf("read stdin: %w", err)
		}
		if len(b) == 0 {
			return "", usage("", "stdin is empty")
		}
		arg = string(b)
	}
	if len(arg) > maxText {
		return "", usage("send less, or a file in pieces", "the text is over %s", size(maxText))
	}
	if !utf8.ValidString(arg) {
		return "", usage("send bytes with --file", "the text is not UTF-8")
	}
	return arg, nil
}

// dataValue parses --data. A number that the wire's doubles cannot hold is refused:
// 12345678901234567890 must not silently become 12345678901234567168.
func dataValue(s string) (*structpb.Value, error) {
	dec := json.NewDecoder(strings.NewReader(s))
	dec.UseNumber()
	var v any
	err := dec.Decode(&v)
	if err == nil {
		if _, more := dec.Token(); !errors.Is(more, io.EOF) {
			err = errors.New("there is something behind the value")
		}
	}
	if err == nil {
		err = exact(v)
	}
	if err != nil {
		return nil, usage("write JSON in single quotes, such as --data '{\"lang\":\"de\"}'", "--data %q: %v", clip(s, 60), err)
	}
	value := new(structpb.Value)
	if err := value.UnmarshalJSON([]byte(s)); err != nil {
		return nil, usage("", "--data %q: %v", clip(s, 60), err)
	}
	return value, nil
}

// exact refuses integers that a double does not hold.
func exact(v any) error {
	switch v := v.(type) {
	case json.Number:
		if n, ok := new(big.Int).SetString(v.String(), 10); ok {
			if f, acc := new(big.Float).SetInt(n).Float64(); acc != big.Exact || f != f {
				return fmt.Errorf("the integer %s is too big to travel exactly; send it as a string", clip(v.String(), 40))
			}
		} else if _, err := v.Float64(); err != nil {
			return fmt.Errorf("the number %s is out of range", clip(v.String(), 40))
		}
	case []any:
		for _, e := range v {
			if err := exact(e); err != nil {
				return err
			}
		}
	case map[string]any:
		for _, e := range v {
			if err := exact(e); err != nil {
				return err
			}
		}
	}
	return nil
}

// filePart reads a file of at most maxInline bytes.
func filePart(path string) (*a2apb.Part, error) {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return nil, usage("", "--file %q: %v", path, errors.Unwrap(err))
	case !info.Mode().IsRegular():
		return nil, usage("", "--file %q is no regular file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, usage("", "--file %q: %v", path, errors.Unwrap(err))
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxInline+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if len(raw) > maxInline {
		return nil, shoal.NewError(shoal.Invalid, "file_too_large",
			fmt.Sprintf("--file %q has %d bytes, at most %d travel inside a message", path, max(info.Size(), maxInline+1), maxInline),
			"larger files come with blobs in a later version; until then give the agent a URL")
	}
	name := filepath.Base(path)
	if !utf8.ValidString(name) {
		return nil, usage("rename it", "--file %q: its name is not UTF-8", path)
	}
	return &a2apb.Part{Content: &a2apb.Part_Raw{Raw: raw}, Filename: name, MediaType: mediaType(name, raw)}, nil
}

// mediaType goes by the name first, then by the content. The few types that agents see
// most do not depend on the tables that this machine happens to have.
func mediaType(name string, raw []byte) string {
	switch ext := strings.ToLower(filepath.Ext(name)); ext {
	case ".md":
		return "text/markdown"
	case ".csv":
		return "text/csv"
	case ".json":
		return "application/json"
	case ".yaml", ".yml":
		return "application/yaml"
	default:
		if t, _, err := mime.ParseMediaType(mime.TypeByExtension(ext)); err == nil && t != "" {
			return t
		}
	}
	t, _, _ := mime.ParseMediaType(http.DetectContentType(raw))
	if t == "" || bytes.IndexByte(raw, 0) >= 0 && t == "text/plain" {
		return "application/octet-stream"
	}
	return t
}
