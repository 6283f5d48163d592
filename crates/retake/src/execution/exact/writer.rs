//! Rust values as JSON values, without changing them: `serde_json` makes null of NaN, and keeps the last of two equal
//! keys.

use std::fmt::{self, Display};

use serde::{Serialize, Serializer, ser};
use serde_json::{Map, Number, Value};

use crate::execution::{DEPTH_MAX, Step, Unstorable};

/// Names of structs by which `serde_json` hands itself numbers and texts that it has not read.
const PRIVATE: &str = "$serde_json::private::";

/// Returns a Rust value as JSON, exactly. `path` says where it stands.
///
/// # Errors
/// [`Unstorable`] with the path of the first thing that JSON cannot hold, that would come back as something else, or
/// that is nested too deep.
///
/// ```
/// use retake::execution::exact_value;
///
/// assert_eq!(exact_value("output", &("otter", 1.5))?, serde_json::json!(["otter", 1.5]));
/// let error = exact_value("output", &[1.0, f64::NAN]).unwrap_err();
/// assert_eq!(error.to_string(), "cannot store output[1]: NaN is no number that JSON can hold");
/// # Ok::<(), retake::execution::Unstorable>(())
/// ```
pub fn exact_value<T: Serialize + ?Sized>(path: &str, value: &T) -> Result<Value, Unstorable> {
    value.serialize(Writer { depth: 1 }).map_err(|Refusal { steps, why }| {
        let path = steps.iter().rev().fold(path.to_owned(), |path, step| path + step);
        Unstorable { path, why }
    })
}

/// Why a part cannot be written, and the steps that lead to it, the last first.
#[derive(Debug)]
struct Refusal {
    steps: Vec<String>,
    why: String,
}

impl Refusal {
    fn new(why: impl Into<String>) -> Self {
        Self { steps: Vec::new(), why: why.into() }
    }

    fn within(mut self, step: Step<'_>) -> Self {
        self.steps.push(step.to_string());
        self
    }
}

impl Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

impl std::error::Error for Refusal {}

impl ser::Error for Refusal {
    fn custom<T: Display>(why: T) -> Self {
        Self::new(why.to_string())
    }
}

/// Writes one value, `depth` levels down.
#[derive(Clone, Copy)]
struct Writer {
    depth: usize,
}

impl Writer {
    fn down(self) -> Self {
        Self { depth: self.depth + 1 }
    }

    /// Writes what lies in this value.
    fn inner<T: Serialize + ?Sized>(self, step: Step<'_>, value: &T) -> Result<Value, Refusal> {
        if self.depth >= DEPTH_MAX {
            return Err(Refusal::new(format!("it is nested deeper than {DEPTH_MAX} levels")).within(step));
        }
        value.serialize(self.down()).map_err(|refusal| refusal.within(step))
    }
}

macro_rules! integers {
    ($($method:ident: $integer:ty),*) => {
        $(fn $method(self, integer: $integer) -> Result<Value, Refusal> {
            Ok(Value::from(integer))
        })*
    };
}

impl Serializer for Writer {
    type Ok = Value;
    type Error = Refusal;
    type SerializeSeq = Items;
    type SerializeTuple = Items;
    type SerializeTupleStruct = Items;
    type SerializeTupleVariant = Items;
    type SerializeMap = Entries;
    type SerializeStruct = Entries;
    type SerializeStructVariant = Entries;

    integers!(
        serialize_i8: i8, serialize_i16: i16, serialize_i32: i32, serialize_i64: i64,
        serialize_u8: u8, serialize_u16: u16, serialize_u32: u32, serialize_u64: u64
    );

    fn serialize_i128(self, integer: i128) -> Result<Value, Refusal> {
        let signed = i64::try_from(integer).map(Value::from);
        signed.or_else(|_| u64::try_from(integer).map(Value::from)).map_err(|_| too_large(integer))
    }

    fn serialize_u128(self, integer: u128) -> Result<Value, Refusal> {
        u64::try_from(integer).map(Value::from).map_err(|_| too_large(integer))
    }

    fn serialize_f32(self, float: f32) -> Result<Value, Refusal> {
        self.serialize_f64(float.into())
    }

    fn serialize_f64(self, float: f64) -> Result<Value, Refusal> {
        Number::from_f64(float)
            .map(Value::Number)
            .ok_or_else(|| Refusal::new(format!("{float} is no number that JSON can hold")))
    }

    fn serialize_bool(self, flag: bool) -> Result<Value, Refusal> {
        Ok(Value::Bool(flag))
    }

    fn serialize_char(self, character: char) -> Result<Value, Refusal> {
        Ok(Value::String(character.into()))
    }

    fn serialize_str(self, text: &str) -> Result<Value, Refusal> {
        Ok(Value::String(text.to_owned()))
    }

    fn serialize_bytes(self, bytes: &[u8]) -> Result<Value, Refusal> {
        Ok(Value::Array(bytes.iter().map(|&byte| Value::from(byte)).collect()))
    }

    fn serialize_none(self) -> Result<Value, Refusal> {
        Ok(Value::Null)
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<Value, Refusal> {
        value.serialize(self)
    }

    fn serialize_unit(self) -> Result<Value, Refusal> {
        Ok(Value::Null)
    }

    fn serialize_unit_struct(self, _: &'static str) -> Result<Value, Refusal> {
        Ok(Value::Null)
    }

    fn serialize_unit_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
    ) -> Result<Value, Refusal> {
        Ok(Value::String(variant.to_owned()))
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        value: &T,
    ) -> Result<Value, Refusal> {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<Value, Refusal> {
        Ok(in_variant(variant, self.inner(Step::Key(variant), value)?))
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<Items, Refusal> {
        Ok(Items { writer: self, items: Vec::new(), variant: None })
    }

    fn serialize_tuple(self, _: usize) -> Result<Items, Refusal> {
        self.serialize_seq(None)
    }

    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Items, Refusal> {
        self.serialize_seq(None)
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Items, Refusal> {
        Ok(Items { writer: self.down(), items: Vec::new(), variant: Some(variant) })
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Entries, Refusal> {
        Ok(Entries { writer: self, entries: Map::new(), key: String::new(), variant: None })
    }

    fn serialize_struct(self, name: &'static str, _: usize) -> Result<Entries, Refusal> {
        if name.starts_with(PRIVATE) {
            return Err(Refusal::new("it is JSON that `serde_json` has not read: make it a value first"));
        }
        self.serialize_map(None)
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> Result<Entries, Refusal> {
        Ok(Entries { writer: self.down(), entries: Map::new(), key: String::new(), variant: Some(variant) })
    }
}

fn too_large(integer: impl Display) -> Refusal {
    Refusal::new(format!("{integer} does not fit into 64 bits"))
}

fn in_variant(variant: &str, value: Value) -> Value {
    Value::Object(Map::from_iter([(variant.to_owned(), value)]))
}

/// A list that is being written.
struct Items {
    writer: Writer,
    items: Vec<Value>,
    variant: Option<&'static str>,
}

impl Items {
    fn push<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Refusal> {
        let item = self.writer.inner(Step::Index(self.items.len()), value);
        let item = item.map_err(|refusal| within_variant(refusal, self.variant))?;
        self.items.push(item);
        Ok(())
    }

    fn finish(self) -> Value {
        let list = Value::Array(self.items);
        match self.variant {
            Some(variant) => in_variant(variant, list),
            None => list,
        }
    }
}

/// An object that is being written.
struct Entries {
    writer: Writer,
    entries: Map<String, Value>,
    key: String,
    variant: Option<&'static str>,
}

impl Entries {
    fn insert<T: Serialize + ?Sized>(&mut self, key: String, value: &T) -> Result<(), Refusal> {
        let result = if self.entries.contains_key(&key) {
            Err(Refusal::new("it stands there twice").within(Step::Key(&key)))
        } else {
            self.writer.inner(Step::Key(&key), value)
        };
        let value = result.map_err(|refusal| within_variant(refusal, self.variant))?;
        self.entries.insert(key, value);
        Ok(())
    }
}

fn within_variant(refusal: Refusal, variant: Option<&'static str>) -> Refusal {
    match variant {
        Some(variant) => refusal.within(Step::Key(variant)),
        None => refusal,
    }
}

macro_rules! items {
    ($($part:ident::$method:ident),*) => {
        $(impl ser::$part for Items {
            type Ok = Value;
            type Error = Refusal;

            fn $method<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Refusal> {
                self.push(value)
            }

            fn end(self) -> Result<Value, Refusal> {
                Ok(self.finish())
            }
        })*
    };
}

items!(
    SerializeSeq::serialize_element,
    SerializeTuple::serialize_element,
    SerializeTupleStruct::serialize_field,
    SerializeTupleVariant::serialize_field
);

macro_rules! fields {
    ($($part:ident),*) => {
        $(impl ser::$part for Entries {
            type Ok = Value;
            type Error = Refusal;

            fn serialize_field<T: Serialize + ?Sized>(
                &mut self,
                key: &'static str,
                value: &T,
            ) -> Result<(), Refusal> {
                self.insert(key.to_owned(), value)
            }

            fn end(self) -> Result<Value, Refusal> {
                ser::SerializeMap::end(self)
            }
        })*
    };
}

fields!(SerializeStruct, SerializeStructVariant);

impl ser::SerializeMap for Entries {
    type Ok = Value;
    type Error = Refusal;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), Refusal> {
        self.key = match key.serialize(self.writer)? {
            Value::String(text) => text,
            Value::Number(number) => number.to_string(),
            Value::Bool(flag) => flag.to_string(),
            Value::Null | Value::Array(_) | Value::Object(_) => {
                return Err(within_variant(Refusal::new("a key in it is no text"), self.variant));
            }
        };
        Ok(())
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Refusal> {
        let key = std::mem::take(&mut self.key);
        self.insert(key, value)
    }

    fn end(self) -> Result<Value, Refusal> {
        let object = Value::Object(self.entries);
        Ok(match self.variant {
            Some(variant) => in_variant(variant, object),
            None => object,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;

    #[derive(Serialize)]
    struct Unit;

    #[derive(Serialize)]
    struct Wrapped(u8);

    #[derive(Serialize)]
    enum Choice {
        Unit,
        Newtype(f32),
        Tuple(i8, Option<bool>),
        Struct { a: char, b: (), c: Unit },
    }

    #[derive(Serialize)]
    struct Whole {
        choices: Vec<Choice>,
        keyed: BTreeMap<i32, Wrapped>,
        large: (u128, i128),
        nothing: Option<u8>,
    }

    #[derive(Serialize)]
    struct Deep(Option<Box<Deep>>, u8);

    /// Gives an object one key twice.
    struct Twice;

    impl Serialize for Twice {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.collect_map([("k", 1), ("k", 2)])
        }
    }

    #[test]
    fn what_json_can_hold_is_written_as_serde_json_writes_it() {
        let whole = Whole {
            choices: vec![
                Choice::Unit,
                Choice::Newtype(0.5),
                Choice::Tuple(-1, Some(true)),
                Choice::Struct { a: 'ñ', b: (), c: Unit },
            ],
            keyed: BTreeMap::from([(-7, Wrapped(1)), (3, Wrapped(2))]),
            large: (u64::MAX.into(), i64::MIN.into()),
            nothing: None,
        };
        let value = exact_value("x", &whole).unwrap();
        assert_eq!(value.to_string(), serde_json::to_value(&whole).unwrap().to_string());
        let any = json!({"z": [1, {"y": -0.0}], "a": null});
        assert_eq!(exact_value("x", &any).unwrap().to_string(), any.to_string());
    }

    #[test]
    fn what_would_change_is_refused_with_its_path() {
        let refusal = |error: Result<Value, Unstorable>| error.unwrap_err().to_string();
        let keyed = BTreeMap::from([("a b", vec![Choice::Newtype(f32::INFINITY)])]);
        assert_eq!(
            refusal(exact_value("output", &keyed)),
            "cannot store output[\"a b\"][0].Newtype: inf is no number that JSON can hold"
        );
        assert_eq!(
            refusal(exact_value("output", &[u128::from(u64::MAX) + 1])),
            "cannot store output[0]: 18446744073709551616 does not fit into 64 bits"
        );
        assert_eq!(refusal(exact_value("output", &Twice)), "cannot store output.k: it stands there twice");
        let keys = BTreeMap::from([(vec![1], 1)]);
        assert_eq!(refusal(exact_value("output", &keys)), "cannot store output: a key in it is no text");
    }

    #[test]
    fn nesting_ends_where_it_could_not_be_stored() {
        let deep = |levels: usize| (0..levels).fold(Deep(None, 0), |inner, _| Deep(Some(Box::new(inner)), 0));
        let kept = exact_value("output", &deep(DEPTH_MAX - 2)).unwrap();
        assert!(crate::execution::check_value("output", &kept).is_ok());
        let error = exact_value("output", &deep(DEPTH_MAX - 1)).unwrap_err();
        assert_eq!(error.path, format!("output{}", "[0]".repeat(DEPTH_MAX)));
    }
}
