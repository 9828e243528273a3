// SPDX-License-Identifier: Apache-2.0

package batch

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strconv"
	"strings"
)

// Schema is the JSON Schema (draft 2020-12) of the plan file, made from the types and their tags.
func Schema() []byte {
	s := object{{"$schema", "https://json-schema.org/draft/2020-12/schema"}, {"title", "A plan of imsprep batch"}}
	s = append(s, schemaOf(reflect.TypeFor[Plan](), "")...)
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(s); err != nil {
		panic(err) // there are only texts, numbers and lists in it
	}
	return b.Bytes()
}

// object is a JSON object that keeps its order.
type object []struct {
	key   string
	value any
}

// MarshalJSON implements [json.Marshaler].
func (o object) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	for n, pair := range o {
		if n > 0 {
			b.WriteByte(',')
		}
		key, err := json.Marshal(pair.key)
		if err != nil {
			return nil, err
		}
		var value bytes.Buffer
		e := json.NewEncoder(&value)
		e.SetEscapeHTML(false)
		if err := e.Encode(pair.value); err != nil {
			return nil, err
		}
		b.Write(key)
		b.WriteByte(':')
		b.Write(bytes.TrimSpace(value.Bytes()))
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

// schemaOf describes a type. null is allowed where a value may be: it counts as not said.
func schemaOf(t reflect.Type, tag reflect.StructTag) object {
	var s object
	set := func(key string, value any) {
		s = append(s, struct {
			key   string
			value any
		}{key, value})
	}
	number := func(key, text string) {
		if n, err := strconv.Atoi(text); err == nil {
			set(key, n)
		}
	}
	if doc := tag.Get("doc"); doc != "" {
		set("description", doc)
	}
	switch t {
	case sizeType, rateType:
		pattern := sizePattern
		if t == rateType {
			pattern = strings.TrimSuffix(pattern, "$") + "(/s)?$"
		}
		set("anyOf", []object{{{"type", "integer"}, {"minimum", 0}}, {{"type", "string"}, {"pattern", pattern}}, {{"type", "null"}}})
	case durationType:
		set("type", []string{"string", "null"})
		set("pattern", `^([0-9]+(\.[0-9]+)?(ns|us|µs|ms|s|m|h))+$`)
	default:
		switch t.Kind() {
		case reflect.Pointer:
			return append(s, schemaOf(t.Elem(), "")...)
		case reflect.Bool:
			set("type", []string{"boolean", "null"})
		case reflect.Int:
			set("type", []string{"integer", "null"})
			number("minimum", tag.Get("min"))
			number("maximum", tag.Get("max"))
		case reflect.String:
			if list := tag.Get("enum"); list != "" {
				var values []any
				for _, v := range strings.Split(list, ",") {
					values = append(values, v)
				}
				set("enum", append(values, nil))
				break
			}
			kinds := []string{"string", "number", "boolean", "null"} // a name may look like a number
			if tag.Get("required") == "true" {
				kinds = kinds[:3]
			}
			set("type", kinds)
		case reflect.Slice:
			set("type", []string{"array", "null"})
			set("items", schemaOf(t.Elem(), ""))
		case reflect.Map:
			set("type", []string{"object", "null"})
			set("additionalProperties", object{{"type", []string{"string", "number", "boolean", "null"}}})
		case reflect.Struct:
			set("type", "object")
			set("additionalProperties", false)
			var required []string
			var properties object
			for _, f := range fieldsOf(t) {
				properties = append(properties, struct {
					key   string
					value any
				}{f.name, schemaOf(f.typ, f.tag)})
				if f.tag.Get("required") == "true" {
					required = append(required, f.name)
				}
			}
			if required != nil {
				set("required", required)
			}
			set("properties", properties)
		}
	}
	if value := tag.Get("default"); value != "" {
		if n, err := strconv.Atoi(value); err == nil {
			set("default", n)
		} else {
			set("default", value)
		}
	}
	return s
}
