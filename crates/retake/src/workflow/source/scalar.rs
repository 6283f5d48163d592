//! What a plain scalar is: YAML's core schema, without what JSON cannot hold.

use serde_json::{Number, Value};

/// Returns the value of a plain scalar, or why it has none.
pub(super) fn resolve(text: &str) -> Result<Value, &'static str> {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Ok(Value::Null),
        "true" | "True" | "TRUE" => return Ok(Value::Bool(true)),
        "false" | "False" | "FALSE" => return Ok(Value::Bool(false)),
        _ => {}
    }
    let (negative, digits) = match text.as_bytes()[0] {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    if matches!(digits, ".inf" | ".Inf" | ".INF") || matches!(text, ".nan" | ".NaN" | ".NAN") {
        return Err("infinity and NaN are no numbers that can be stored");
    }
    if let Some(octal) =
        text.strip_prefix("0o").filter(|octal| is_all(octal, |byte| matches!(byte, b'0'..=b'7')))
    {
        return u64::from_str_radix(octal, 8).map(Value::from).map_err(|_| TOO_LARGE);
    }
    if let Some(hex) = text.strip_prefix("0x").filter(|hex| is_all(hex, |byte| byte.is_ascii_hexdigit())) {
        return u64::from_str_radix(hex, 16).map(Value::from).map_err(|_| TOO_LARGE);
    }
    if is_all(digits, |byte| byte.is_ascii_digit()) {
        return integer(digits, negative).ok_or(TOO_LARGE);
    }
    if is_float(digits) {
        let number: f64 = text.parse().unwrap_or(f64::NAN);
        let mantissa = digits.split(['e', 'E']).next().unwrap_or_default();
        if number == 0.0 && mantissa.contains(|digit| matches!(digit, '1'..='9')) {
            return Err("this number is smaller than any that can be stored, and is not zero");
        }
        let number = Number::from_f64(number).map(Value::Number);
        return number.ok_or("this number is larger than any that can be stored");
    }
    Ok(Value::String(text.to_owned()))
}

const TOO_LARGE: &str = "this integer does not fit into 64 bits";

fn integer(digits: &str, negative: bool) -> Option<Value> {
    if negative {
        // As JSON has it: no integer is a zero with a sign.
        if digits.bytes().all(|digit| digit == b'0') {
            return Some(Value::from(-0.0));
        }
        return format!("-{digits}").parse::<i64>().ok().map(Value::from);
    }
    digits.parse::<u64>().ok().map(Value::from)
}

fn is_all(text: &str, is: impl Fn(u8) -> bool) -> bool {
    !text.is_empty() && text.bytes().all(is)
}

/// `( "." [0-9]+ | [0-9]+ ( "." [0-9]* )? ) ( [eE] [-+]? [0-9]+ )?`
fn is_float(text: &str) -> bool {
    let (mantissa, exponent) = match text.find(['e', 'E']) {
        Some(at) => (&text[..at], Some(&text[at + 1..])),
        None => (text, None),
    };
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let mantissa = match mantissa.split_once('.') {
        Some((whole, fraction)) => {
            digits(whole) && digits(fraction) && !(whole.is_empty() && fraction.is_empty())
        }
        None => digits(mantissa) && !mantissa.is_empty(),
    };
    let exponent = exponent.is_none_or(|exponent| {
        let exponent = exponent.strip_prefix(['-', '+']).unwrap_or(exponent);
        !exponent.is_empty() && digits(exponent)
    });
    mantissa && exponent
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn plain_scalars_have_the_types_of_the_core_schema() {
        for (text, value) in [
            ("", json!(null)),
            ("~", json!(null)),
            ("True", json!(true)),
            ("yes", json!("yes")),
            ("0", json!(0)),
            ("-9223372036854775808", json!(i64::MIN)),
            ("18446744073709551615", json!(u64::MAX)),
            ("+7", json!(7)),
            ("-0", json!(-0.0)),
            ("0e-999", json!(0.0)),
            ("0x1F", json!(31)),
            ("0o17", json!(15)),
            ("1.5", json!(1.5)),
            ("1.", json!(1.0)),
            (".5", json!(0.5)),
            ("-1e3", json!(-1000.0)),
            (".", json!(".")),
            ("-", json!("-")),
            ("1e", json!("1e")),
            ("0x", json!("0x")),
            ("1.2.3", json!("1.2.3")),
            ("12:30", json!("12:30")),
            ("60s", json!("60s")),
        ] {
            assert_eq!(resolve(text), Ok(value), "{text:?}");
        }
    }

    #[test]
    fn numbers_that_json_cannot_hold_are_refused_and_never_rounded() {
        for text in
            ["18446744073709551616", "-9223372036854775809", "12345678901234567890123", "0xFFFFFFFFFFFFFFFFF"]
        {
            assert_eq!(resolve(text), Err(TOO_LARGE), "{text}");
        }
        for text in [".inf", "-.inf", "+.Inf", ".nan", "1e999", "1e-999", "-.5e-400"] {
            assert!(resolve(text).is_err(), "{text}");
        }
    }
}
