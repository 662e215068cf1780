package store

import (
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"math"
	"reflect"
	"time"
)

var errTime = errors.New("a time.Time has no one form in SQLite; store milliseconds")

// toValue makes one of the driver's types of an argument. Byte slices are not copied: the
// driver copies them before it returns.
func toValue(a any) (driver.Value, error) {
	switch v := a.(type) {
	case nil, int64, string, []byte, float64:
		return v, nil
	case int:
		return int64(v), nil
	case bool:
		return v, nil
	case uint64:
		return int64(v), nil
	case uint32:
		return int64(v), nil
	case time.Time:
		return nil, errTime
	case driver.Valuer:
		return v.Value()
	}
	r := reflect.ValueOf(a)
	switch r.Kind() {
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return r.Int(), nil
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return int64(r.Uint()), nil
	case reflect.Float32, reflect.Float64:
		return r.Float(), nil
	case reflect.Bool:
		return r.Bool(), nil
	case reflect.String:
		return r.String(), nil
	case reflect.Slice:
		if r.Type().Elem().Kind() == reflect.Uint8 {
			return r.Bytes(), nil
		}
	case reflect.Array:
		if r.Type().Elem().Kind() == reflect.Uint8 {
			b := make([]byte, r.Len())
			reflect.Copy(reflect.ValueOf(b), r)
			return b, nil
		}
	case reflect.Pointer:
		if r.IsNil() {
			return nil, nil
		}
		return toValue(r.Elem().Interface())
	}
	return nil, fmt.Errorf("type %T cannot be stored", a)
}

// scanRow copies the columns into dest. Byte slices become the caller's own.
func scanRow(vals []driver.Value, dest []any) error {
	if len(dest) != len(vals) {
		return fmt.Errorf("%d destinations for %d columns", len(dest), len(vals))
	}
	for i, d := range dest {
		if err := scanValue(vals[i], d); err != nil {
			return fmt.Errorf("column %d: %w", i+1, err)
		}
	}
	return nil
}

func scanValue(v driver.Value, dest any) error {
	switch d := dest.(type) {
	case *int64:
		if n, ok := v.(int64); ok {
			*d = n
			return nil
		}
	case *string:
		if s, ok := v.(string); ok {
			*d = s
			return nil
		}
	case *[]byte:
		if b, ok := v.([]byte); ok || v == nil {
			*d = b // the driver made the copy
			return nil
		}
	case *any:
		*d = v
		return nil
	case sql.Scanner:
		return d.Scan(v)
	}
	r := reflect.ValueOf(dest)
	if r.Kind() != reflect.Pointer || r.IsNil() {
		return fmt.Errorf("destination %T is not a pointer", dest)
	}
	return scanReflect(v, r.Elem())
}

func scanReflect(v driver.Value, d reflect.Value) error {
	if v == nil {
		d.SetZero()
		return nil
	}
	if d.Kind() == reflect.Pointer {
		p := reflect.New(d.Type().Elem())
		if err := scanValue(v, p.Interface()); err != nil {
			return err
		}
		d.Set(p)
		return nil
	}
	ok := false
	switch v := v.(type) {
	case int64:
		ok = setInt(d, v)
	case float64:
		ok = setFloat(d, v)
	case string:
		ok = setBytes(d, []byte(v))
	case []byte:
		ok = setBytes(d, v)
	}
	if !ok {
		return fmt.Errorf("a %T (%s) does not fit a %s", v, shown(v), d.Type())
	}
	return nil
}

func setInt(d reflect.Value, n int64) bool {
	switch d.Kind() {
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		if d.OverflowInt(n) {
			return false
		}
		d.SetInt(n)
	case reflect.Uint64:
		d.SetUint(uint64(n))
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32:
		if n < 0 || d.OverflowUint(uint64(n)) {
			return false
		}
		d.SetUint(uint64(n))
	case reflect.Bool:
		if n != 0 && n != 1 {
			return false
		}
		d.SetBool(n == 1)
	case reflect.Float32, reflect.Float64:
		d.SetFloat(float64(n))
	default:
		return false
	}
	return true
}

func setFloat(d reflect.Value, f float64) bool {
	if d.Kind() == reflect.Float32 || d.Kind() == reflect.Float64 {
		d.SetFloat(f)
		return true
	}
	// sum() and the like may turn an integer into a float.
	if f == math.Trunc(f) && math.Abs(f) < 1<<53 {
		return setInt(d, int64(f))
	}
	return false
}

func setBytes(d reflect.Value, b []byte) bool {
	switch {
	case d.Kind() == reflect.String:
		d.SetString(string(b))
	case d.Kind() == reflect.Slice && d.Type().Elem().Kind() == reflect.Uint8:
		d.SetBytes(b)
	case d.Kind() == reflect.Array && d.Type().Elem().Kind() == reflect.Uint8 && d.Len() == len(b):
		reflect.Copy(d, reflect.ValueOf(b))
	default:
		return false
	}
	return true
}

// shown is a value's size, not the value: it may be a secret.
func shown(v driver.Value) string {
	switch v := v.(type) {
	case []byte:
		return fmt.Sprintf("%d bytes", len(v))
	case string:
		return fmt.Sprintf("%d bytes", len(v))
	}
	return fmt.Sprint(v)
}
