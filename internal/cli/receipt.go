package cli

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/shoalmesh/shoal"
	shoalv1 "github.com/shoalmesh/shoal/gen/shoal/v1"
)

// receiptJSON is a receipt as `task receipt -o json` prints it and --verify reads it.
// Body and signatures are what counts; the rest says the same in words.
type receiptJSON struct {
	Body           []byte `json:"body"`
	DoerSignature  []byte `json:"doer_signature"`
	AskerSignature []byte `json:"asker_signature"`
	Network        string `json:"network"`
	TaskID         string `json:"task_id"`
	From           string `json:"from"`
	To             string `json:"to"`
	Skill          string `json:"skill"`
	InputSHA256    string `json:"input_sha256"`
	OutputSHA256   string `json:"output_sha256"`
	State          string `json:"state"`
	Attempt        uint32 `json:"attempt"`
	Class          string `json:"class"`
	SubmittedAt    string `json:"submitted_at,omitempty"`
	StartedAt      string `json:"started_at,omitempty"`
	FinishedAt     string `json:"finished_at,omitempty"`
	PriceMicro     int64  `json:"price_micro"`
	InputMatches   bool   `json:"input_matches"`
	OutputMatches  bool   `json:"output_matches"`
	Verified       *bool  `json:"verified,omitempty"` // with --verify
}

func receiptOf(r *shoalv1.Receipt) receiptJSON {
	return receiptJSON{
		Body: r.GetBody(), DoerSignature: r.GetDoerSignature(), AskerSignature: r.GetAskerSignature(), Network: r.GetNetwork(),
		TaskID: r.GetTaskId(), From: r.GetFrom(), To: r.GetTo(), Skill: r.GetSkill(), InputSHA256: r.GetInputSha256(), OutputSHA256: r.GetOutputSha256(),
		State: r.GetState().String(), Attempt: r.GetAttempt(), Class: classWord(r.GetClass()),
		SubmittedAt: stamp(r.GetSubmittedAt()), StartedAt: stamp(r.GetStartedAt()), FinishedAt: stamp(r.GetFinishedAt()),
		PriceMicro: r.GetPriceMicro(), InputMatches: r.GetInputMatches(), OutputMatches: r.GetOutputMatches(),
	}
}

func (a *app) taskReceipt() *cobra.Command {
	var verify bool
	c := &cobra.Command{
		Use:   "receipt ID | receipt FILE --verify",
		Short: "Show the receipt of a finished task; --verify checks it, offline",
		Long: `Show the receipt that the doer signed and the asker countersigned. --verify checks both
signatures here, without trusting the daemon; given a FILE that holds what
` + "`shoal task receipt ID -o json`" + ` printed ("-" reads stdin), it needs no daemon at all.`,
		Example: "  shoal task receipt 019a…\n  shoal task receipt 019a… -o json > receipt.json\n  shoal task receipt receipt.json --verify",
		Args:    arguments(1, "ID or FILE"),
	}
	ref := refFlags(c)
	c.Flags().BoolVar(&verify, "verify", false, "check both signatures and every field against what was signed")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		if verify && (args[0] == "-" || exists(args[0])) {
			r, err := a.readReceipt(args[0])
			if err != nil {
				return err
			}
			return a.printReceipt(r, true, false)
		}
		rf, err := ref(a, cmd, args[0])
		if err != nil {
			return err
		}
		r, err := a.getReceipt(cmd, rf)
		if err != nil {
			return err
		}
		return a.printReceipt(r, verify, true)
	}
	return c
}

func (a *app) getReceipt(cmd *cobra.Command, ref taskRef) (receiptJSON, error) {
	c, err := a.dial()
	if err != nil {
		return receiptJSON{}, err
	}
	ctx, cancel := a.bounded(cmd)
	defer cancel()
	resp, err := c.tasks.Receipt(ctx, connect.NewRequest(&shoalv1.ReceiptRequest{Id: ref.id, Requester: ref.requester, Role: ref.role}))
	if err != nil {
		return receiptJSON{}, apiError(ctx, err)
	}
	return receiptOf(resp.Msg.GetReceipt()), nil
}

// maxReceiptFile bounds what --verify reads: a receipt's JSON is under 4 KiB.
const maxReceiptFile = 64 << 10

func (a *app) readReceipt(path string) (receiptJSON, error) {
	in := a.in
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return receiptJSON{}, usage("", "receipt file: %v", err)
		}
		defer f.Close()
		in = f
	}
	raw, err := io.ReadAll(io.LimitReader(in, maxReceiptFile+1))
	if err != nil {
		return receiptJSON{}, usage("", "receipt file: %v", err)
	}
	var r receiptJSON
	if len(raw) > maxReceiptFile {
		err = fmt.Errorf("it is over %s", size(maxReceiptFile))
	} else {
		err = json.Unmarshal(raw, &r)
	}
	if err != nil {
		return receiptJSON{}, usage("write it with `shoal task receipt ID -o json`", "%q holds no receipt: %v", path, err)
	}
	return r, nil
}

// verifyReceipt checks both signatures and that the words say what was signed.
func verifyReceipt(r receiptJSON) (shoal.Receipt, error) {
	signed, err := shoal.VerifyReceipt(r.Body, r.DoerSignature, r.AskerSignature, r.Network)
	if err != nil {
		return signed, err
	}
	for _, f := range []struct{ name, says, signed string }{
		{"task_id", r.TaskID, string(signed.Key.ID)},
		{"from", r.From, string(signed.Key.Requester)},
		{"to", r.To, string(signed.Doer)},
		{"skill", r.Skill, signed.Skill},
		{"input_sha256", r.InputSHA256, hex.EncodeToString(signed.InputHash[:])},
		{"output_sha256", r.OutputSHA256, hex.EncodeToString(signed.OutputHash[:])},
		{"state", r.State, signed.State.String()},
		{"attempt", fmt.Sprint(r.Attempt), fmt.Sprint(signed.Attempt)},
		{"class", r.Class, signed.Class.String()},
		{"submitted_at", r.SubmittedAt, stampTime(signed.Submitted)},
		{"started_at", r.StartedAt, stampTime(signed.Started)},
		{"finished_at", r.FinishedAt, stampTime(signed.Finished)},
		{"price_micro", fmt.Sprint(r.PriceMicro), fmt.Sprint(int64(signed.Price))},
	} {
		if f.says != f.signed {
			return signed, shoal.NewError(shoal.Corrupt, "receipt_altered",
				fmt.Sprintf("receipt says %s %q, but %q was signed", f.name, clip(f.says, 80), f.signed), "do not rely on it")
		}
	}
	if len(r.AskerSignature) == 0 {
		return signed, shoal.NewError(shoal.Corrupt, "not_countersigned", "the doer's signature is good, but the asker has not countersigned yet",
			"ask again when the asker's node was reachable")
	}
	return signed, nil
}

// stampTime is stamp for a time.Time; "" for the zero time.
func stampTime(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format("2006-01-02T15:04:05.000Z07:00")
}

// printReceipt prints r and, if it is to be verified, how that went. Only a daemon can
// know whether the hashes fit the bytes it holds.
func (a *app) printReceipt(r receiptJSON, verify, online bool) error {
	var verr error
	if verify {
		_, verr = verifyReceipt(r)
		if verr == nil && online && !(r.InputMatches && r.OutputMatches) {
			verr = shoal.NewError(shoal.Corrupt, "hash_mismatch", "the signatures are good, but this node holds other bytes than the receipt is about",
				"compare input_matches and output_matches with -o json")
		}
		ok := verr == nil
		r.Verified = &ok
	}
	if a.asJSON() {
		a.printJSON(r)
		return verr
	}
	word := map[bool]string{true: "signed", false: "missing"}
	a.pairs(
		[2]string{"task", r.TaskID},
		[2]string{"state", trimState(r.State)},
		[2]string{"from", r.From},
		[2]string{"to", r.To},
		[2]string{"skill", r.Skill},
		[2]string{"input", r.InputSHA256},
		[2]string{"output", r.OutputSHA256},
		[2]string{"submitted", r.SubmittedAt},
		[2]string{"started", r.StartedAt},
		[2]string{"finished", r.FinishedAt},
		[2]string{"price", shoal.Amount(r.PriceMicro).String()},
		[2]string{"doer", word[len(r.DoerSignature) > 0]},
		[2]string{"asker", word[len(r.AskerSignature) > 0]},
	)
	if verify && verr == nil {
		a.print(a.style(a.out, "32", "verified: both signatures are good, and every line above was signed") + "\n")
	}
	return verr
}
