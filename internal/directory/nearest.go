package directory

import (
	"slices"
	"strings"
)

// maxHints is how many names [Nearest] returns; maxWord bounds what it compares, for
// names come from others and the effort is the product of the lengths.
const (
	maxHints = 3
	maxWord  = 64
)

// Nearest returns up to three of the candidates that word was probably meant to be,
// the likeliest first: those that contain it or begin it, or differ in a few letters.
// Case does not matter. It is for hints such as "did you mean ocr?".
func Nearest(candidates []string, word string) []string {
	w := []rune(strings.ToLower(word))
	if len(w) == 0 || len(w) > maxWord {
		return nil
	}
	type hit struct {
		name string
		cost int
	}
	var hits []hit
	for _, name := range candidates {
		n := []rune(strings.ToLower(name))
		if len(n) == 0 || len(n) > maxWord {
			continue
		}
		cost := distance(w, n)
		if cost > allowed(len(w)) {
			if len(w) < 3 || !strings.Contains(string(n), string(w)) {
				continue
			}
			cost = allowed(len(w)) + 1 // after all that are nearly equal
		}
		hits = append(hits, hit{name, cost})
	}
	slices.SortFunc(hits, func(a, b hit) int {
		if a.cost != b.cost {
			return a.cost - b.cost
		}
		return strings.Compare(a.name, b.name)
	})
	var out []string
	for _, h := range hits {
		if len(out) < maxHints && !slices.Contains(out, h.name) {
			out = append(out, h.name)
		}
	}
	return out
}

// allowed is how many letters may differ in a word of n letters.
func allowed(n int) int { return max(1, n/3) }

// distance counts the letters to insert, delete, replace or swap with the next one to
// make a into b (optimal string alignment).
func distance(a, b []rune) int {
	before, prev, cur := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		cur[0] = i
		for j := 1; j <= len(b); j++ {
			replace := prev[j-1]
			if a[i-1] != b[j-1] {
				replace++
			}
			cur[j] = min(prev[j]+1, cur[j-1]+1, replace)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				cur[j] = min(cur[j], before[j-2]+1)
			}
		}
		before, prev, cur = prev, cur, before
	}
	return prev[len(b)]
}
