//! Changes tables of a list, such as `[[port]]`, in a file's text. All other bytes stay as they are.

use std::ops::Range;

use serde_json::{Map, Value as Json};
use toml::Spanned;
use toml::de::{DeTable, DeValue};
use toml_edit::{Array, Decor, DocumentMut, Item, RawString, TableLike, Value};

use crate::plan::KeyDiff;

/// A mark that some editors write at a file's beginning. It is no part of the TOML text.
const BYTE_ORDER_MARK: char = '\u{feff}';

/// Changes the keys of the table at `index` of a list. `None` if that is not possible without changes elsewhere in the
/// text.
pub(super) fn set_keys(text: &str, list: &str, index: usize, keys: &[KeyDiff]) -> Option<String> {
    edit(text, |document| {
        let mut table = table_at(document.get_mut(list)?, index)?;
        for diff in keys {
            table.set(diff.key, diff.before.as_ref(), diff.after.as_ref())?;
        }
        Some(())
    })
}

/// Removes the table at `index` of a list, and the comments directly above it. `None` as in [`set_keys`].
pub(super) fn remove_table(text: &str, list: &str, index: usize) -> Option<String> {
    let (mark, plain) = without_mark(text);
    match lines_of(plain, list, index)? {
        Some(Range { start, end }) => Some([mark, &plain[..start], &plain[end..]].concat()),
        None => edit(text, |document| {
            let tables = document.get_mut(list)?.as_array_mut()?;
            tables.remove(index);
            Some(())
        }),
    }
}

/// Adds a table at the end of the text.
pub(super) fn append(text: &str, table: &str) -> String {
    let end = if text.contains("\r\n") { "\r\n" } else { "\n" };
    let mut all = text.to_owned();
    if !all.is_empty() {
        let last = if all.ends_with('\n') { "" } else { end };
        all.push_str(last);
        all.push_str(end);
    }
    all.push_str(&table.replace('\n', end));
    all
}

/// The byte order mark, if the text has one, and the rest.
fn without_mark(text: &str) -> (&str, &str) {
    match text.starts_with(BYTE_ORDER_MARK) {
        true => text.split_at(BYTE_ORDER_MARK.len_utf8()),
        false => ("", text),
    }
}

/// Changes a document. Line ends and a byte order mark stay as they are.
fn edit(text: &str, change: impl FnOnce(&mut DocumentMut) -> Option<()>) -> Option<String> {
    let (mark, plain) = without_mark(text);
    let has_returns = plain.contains("\r\n");
    let mut plain = plain.replace("\r\n", "\n");
    // The last line gets an end: a key may follow it.
    if !plain.ends_with('\n') {
        plain.push('\n');
    }
    let is_mixed = has_returns && text.matches('\n').count() > text.matches("\r\n").count();
    let mut document: DocumentMut = plain.parse().ok()?;
    if is_mixed || document.to_string() != plain {
        return None;
    }
    change(&mut document)?;
    let mut changed = document.to_string();
    if has_returns {
        changed = changed.replace('\n', "\r\n");
    }
    Some([mark, &changed].concat())
}

/// A table of the document.
struct Table<'a> {
    keys: &'a mut dyn TableLike,
    /// Whether it is written as `{ key = value }`.
    is_inline: bool,
}

fn table_at(list: &mut Item, index: usize) -> Option<Table<'_>> {
    match list {
        Item::ArrayOfTables(tables) => Some(Table {
            keys: tables.get_mut(index)?,
            is_inline: false,
        }),
        Item::Value(Value::Array(tables)) => Some(Table {
            keys: tables.get_mut(index)?.as_inline_table_mut()?,
            is_inline: true,
        }),
        _ => None,
    }
}

impl Table<'_> {
    /// Gives a key a value, or removes it. In a table that it has, only the keys that differ are changed.
    fn set(&mut self, key: &str, before: Option<&Json>, after: Option<&Json>) -> Option<()> {
        let Some(value) = after.filter(|value| !value.is_null()) else {
            self.remove(key);
            return Some(());
        };
        let Some(item) = self.keys.get_mut(key) else {
            return self.insert(key, new_value(value)?);
        };
        let is_inline = item.is_inline_table();
        if let (Some(keys), Some(Json::Object(old)), Json::Object(new)) =
            (item.as_table_like_mut(), before, value)
        {
            return Table { keys, is_inline }.set_all(old, new);
        }
        match item.as_value_mut() {
            Some(old) => replace_value(old, value),
            None => {
                self.remove(key);
                self.insert(key, new_value(value)?)
            }
        }
    }

    fn set_all(&mut self, old: &Map<String, Json>, new: &Map<String, Json>) -> Option<()> {
        let added = new.keys().filter(|key| !old.contains_key(*key));
        for key in old.keys().chain(added) {
            let (before, after) = (old.get(key), new.get(key));
            if before != after {
                self.set(key, before, after)?;
            }
        }
        Some(())
    }

    fn remove(&mut self, key: &str) {
        let end = self
            .end(key)
            .filter(|_| self.last().as_deref() == Some(key));
        self.keys.remove(key);
        if let (Some(end), Some(last)) = (end, self.last()) {
            self.set_end(&last, &end);
        }
    }

    /// Adds a key behind the others, indented as the one before it.
    fn insert(&mut self, key: &str, mut value: Value) -> Option<()> {
        let Some(last) = self.last() else {
            self.keys.insert(key, Item::Value(value));
            return Some(());
        };
        let mut before = self.indent(&last);
        if let Some(end) = self.end(&last) {
            self.set_end(&last, "");
            *value.decor_mut() = Decor::new(" ", end);
            before = " ".to_owned();
        }
        self.keys.insert(key, Item::Value(value));
        if !before.is_empty() {
            let mut key = self.keys.key_mut(key)?;
            key.leaf_decor_mut().set_prefix(before);
        }
        Some(())
    }

    /// The last key with a value.
    fn last(&self) -> Option<String> {
        let values = self.keys.iter().filter(|(_, item)| item.is_value());
        values.last().map(|(key, _)| key.to_owned())
    }

    /// The blanks before a key on its line.
    fn indent(&self, key: &str) -> String {
        let prefix = self.keys.key(key).and_then(|key| key.leaf_decor().prefix());
        let prefix = prefix.and_then(RawString::as_str).unwrap_or_default();
        let line = prefix.rsplit('\n').next().unwrap_or_default();
        line.chars().take_while(|c| c.is_whitespace()).collect()
    }

    /// What stands between the value of a key and the comma or brace behind it; `None` if the table is not inline.
    fn end(&self, key: &str) -> Option<String> {
        let value = self.keys.get(key)?.as_value().filter(|_| self.is_inline)?;
        let end = value.decor().suffix().and_then(RawString::as_str);
        Some(end.unwrap_or_default().to_owned())
    }

    fn set_end(&mut self, key: &str, end: &str) {
        if let Some(value) = self.keys.get_mut(key).and_then(Item::as_value_mut) {
            value.decor_mut().set_suffix(end);
        }
    }
}

/// The value as it is written in a file.
fn new_value(value: &Json) -> Option<Value> {
    let text = toml::Value::try_from(value).ok()?.to_string();
    text.parse().ok()
}

/// Replaces a value. Comments beside it stay; of a list, those of items that stay, too.
fn replace_value(old: &mut Value, value: &Json) -> Option<()> {
    if let (Value::Array(items), Json::Array(wanted)) = (&mut *old, value)
        && set_items(items, wanted).is_some()
    {
        return Some(());
    }
    let decor = old.decor().clone();
    *old = new_value(value)?;
    *old.decor_mut() = decor;
    Some(())
}

/// An item of a list, with what is around it.
struct ListItem {
    /// The line end and the blanks before it, and lines with comments.
    lead: String,
    value: Value,
    /// What is behind it on its line, except for the comma.
    comment: String,
}

/// Removes items from a list, and adds others behind them. `None`, and nothing is changed, if that does not make the
/// wanted list.
fn set_items(list: &mut Array, wanted: &[Json]) -> Option<()> {
    let (mut items, close) = items_of(list)?;
    let first = items.first()?.lead.clone();
    let json: Vec<Json> = list.iter().map(json_of).collect::<Option<_>>()?;
    let mut is_kept = json.iter().map(|item| wanted.contains(item));
    items.retain(|_| is_kept.next().unwrap_or_default());
    let kept: Vec<&Json> = json.iter().filter(|item| wanted.contains(item)).collect();
    if kept.is_empty() || !wanted.iter().take(kept.len()).eq(kept.iter().copied()) {
        return None;
    }
    let lead = items.last().map(|last| match last.lead.rfind('\n') {
        Some(line) => last.lead[line..].to_owned(),
        None => " ".to_owned(),
    })?;
    for value in wanted.iter().skip(kept.len()) {
        items.push(ListItem {
            lead: lead.clone(),
            value: new_value(value)?,
            comment: String::new(),
        });
    }
    if !items[0].lead.contains('\n') {
        items[0].lead = first;
    }
    put_items(list, items, &close);
    Some(())
}

/// The items, and what is before the closing bracket. `None` if there is something before a comma.
fn items_of(list: &Array) -> Option<(Vec<ListItem>, String)> {
    let text = |raw: Option<&RawString>| {
        raw.and_then(RawString::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    let mut items: Vec<ListItem> = Vec::new();
    let mut before_comma = String::new();
    for value in list.iter() {
        if !before_comma.is_empty() {
            return None;
        }
        before_comma = text(value.decor().suffix());
        let mut lead = text(value.decor().prefix());
        if let Some(last) = items.last_mut() {
            (last.comment, lead) = at_line_end(lead);
        }
        items.push(ListItem {
            lead,
            value: value.clone(),
            comment: String::new(),
        });
    }
    let (comment, close) = at_line_end(before_comma + &text(Some(list.trailing())));
    items.last_mut()?.comment = comment;
    Some((items, close))
}

/// Splits a text before its first line end, if it has one. Otherwise all of it is the second part.
fn at_line_end(text: String) -> (String, String) {
    let at = text.find('\n').unwrap_or_default();
    (text[..at].to_owned(), text[at..].to_owned())
}

fn put_items(list: &mut Array, items: Vec<ListItem>, close: &str) {
    list.clear();
    let mut before = String::new();
    for item in items {
        let prefix = [before, item.lead].concat();
        list.push_formatted(item.value.decorated(prefix, ""));
        before = item.comment;
    }
    list.set_trailing([&before, close].concat());
}

fn json_of(item: &Value) -> Option<Json> {
    let item = item.clone().decorated("", "");
    let table: toml::Table = format!("item = {item}").parse().ok()?;
    serde_json::to_value(table.get("item")?).ok()
}

/// The lines of the table at `index` of a list, with the comments directly above it. `Some(None)` if it has no header of
/// its own, because the list is one value; `None` if there is no such table, or there are other tables between its lines.
fn lines_of(text: &str, list: &str, index: usize) -> Option<Option<Range<usize>>> {
    let document = DeTable::parse(text).ok()?;
    let document = document.get_ref();
    let item = document.get(list)?.get_ref().as_array()?.get(index)?;
    let start = item.span().start;
    if !text.get(start..)?.starts_with("[[") {
        return Some(None);
    }
    let end = end_of(item, start);
    let mut others = document.iter().flat_map(|(name, item)| {
        let of_list = (name.get_ref() == list).then(|| item.get_ref().as_array());
        match of_list.flatten() {
            Some(tables) => tables.iter().map(|table| table.span().start).collect(),
            None => vec![item.span().start],
        }
    });
    if others.any(|other| start < other && other < end) {
        return None;
    }
    Some(Some(with_neighbors(text, start..end)))
}

/// The end of a value, and of all that it has in it.
fn end_of(item: &Spanned<DeValue<'_>>, start: usize) -> usize {
    let end = item.span().end.max(start);
    let inner: Vec<usize> = match item.get_ref() {
        DeValue::Table(table) => table.values().map(|item| end_of(item, start)).collect(),
        DeValue::Array(items) => items.iter().map(|item| end_of(item, start)).collect(),
        _ => Vec::new(),
    };
    inner.into_iter().fold(end, usize::max)
}

/// Whole lines, with the comments directly above, and with one of the empty lines that would be left around them.
fn with_neighbors(text: &str, span: Range<usize>) -> Range<usize> {
    let line_start = |at: usize| text[..at].rfind('\n').map_or(0, |end| end + 1);
    let line_end = |at: usize| text[at..].find('\n').map_or(text.len(), |end| at + end + 1);
    let is_empty = |lines: Range<usize>| text[lines].trim().is_empty();
    let (mut start, mut end) = (line_start(span.start), line_end(span.end));
    while start > 0
        && text[line_start(start - 1)..start]
            .trim_start()
            .starts_with('#')
    {
        start = line_start(start - 1);
    }
    let is_below_empty = start == 0 || is_empty(line_start(start - 1)..start);
    if is_below_empty && end < text.len() && is_empty(end..line_end(end)) {
        end = line_end(end);
    } else if is_below_empty && end == text.len() && start > 0 {
        start = line_start(start - 1);
    }
    start..end
}
