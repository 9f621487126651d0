"use strict";
// The query expressions of the command line, read and applied in the page. The command line's own
// tables say what fields, statistics and units there are.
const queryFilter = ({ fields: known, times, statistics, functions, weekdays, unit, seconds }) => {
  const WORDS = { true: true, false: false, null: null, none: null, nan: NaN };
  const COMPARISONS = ["==", "!=", "<", "<=", ">", ">=", "in", "not"];
  const MIRRORED = { "<": ">", ">": "<", "<=": ">=", ">=": "<=" };
  const ARITHMETIC = { "+": (a, b) => a + b, "-": (a, b) => a - b, "*": (a, b) => a * b,
    "/": (a, b) => a / b, "%": (a, b) => a - b * Math.floor(a / b), "**": (a, b) => a ** b };
  // How tightly signs bind; `not` before a condition binds as 3, a sign before a number as 7.
  const LEVELS = new Map([["or", 1], ["and", 2], ...COMPARISONS.map((sign) => [sign, 4]),
    ["+", 5], ["-", 5], ["*", 6], ["/", 6], ["%", 6], ["**", 8]]);

  const isList = Array.isArray;
  const isMap = (value) => value !== null && typeof value === "object" && !isList(value);
  function fail(message) { throw new Error(message); }

  function tokens(text) {
    const pattern = /\s*(?:(\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?)|([A-Za-z_]\w*)|("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')|(\*\*|==|!=|<=|>=|[-+*/%<>()[\].,]))/y;
    const found = [];
    while (pattern.lastIndex < text.trimEnd().length) {
      const at = pattern.lastIndex;
      const [, number, name, quoted, sign] = pattern.exec(text)
        ?? fail(`not understood: ${text.slice(at).trim()}`);
      if (number !== undefined) found.push({ constant: Number(number) });
      else if (quoted !== undefined) {
        const before = found.at(-1);
        const value = quoted.slice(1, -1).replace(/\\(.)/g, "$1");
        // Texts that follow each other are one.
        if (typeof before?.constant === "string") before.constant += value;
        else found.push({ constant: value });
      } else found.push({ name, sign: name ?? sign });
    }
    return found;
  }

  function day(text) {
    const words = text.trim().toLowerCase();
    const now = new Date();
    const ago = (days) => new Date(now.getFullYear(), now.getMonth(), now.getDate() - days);
    if (words === "today" || words === "yesterday") return ago(words === "today" ? 0 : 1);
    const weekday = weekdays.indexOf(words.replace(/^last/, "").trim());
    if (weekday >= 0) return ago(((now.getDay() + 5 - weekday + 7) % 7) + 1);
    const date = /^(\d{4})-(\d\d)-(\d\d)$/.exec(words);
    return date ? new Date(Number(date[1]), Number(date[2]) - 1, Number(date[3])) : null;
  }

  function moment(text) {
    const ago = new RegExp(`^${unit}(?:\\s+ago)?$`).exec(text.trim());
    if (ago) return Date.now() - 1000 * Number(ago[1]) * seconds[ago[2][0]];
    const found = (day(text) ?? new Date(text.trim().replace(" ", "T"))).getTime();
    return Number.isNaN(found) ? fail(`not a time: '${text}'`) : found;
  }

  function length(text) {
    const part = new RegExp(`${unit}(?![a-z])`, "g");
    const given = text.trim().toLowerCase();
    const parts = [...given.matchAll(part)];
    if (!parts.length || given.replace(part, "").replace(/[ ,]/g, "")) fail(`not a duration: '${text}'`);
    return parts.reduce((sum, one) => sum + Number(one[1]) * seconds[one[2][0]], 0);
  }

  // All values that a condition on a path is held against; in lists, every entry too.
  function candidates(value, parts) {
    if (!parts.length) return isList(value) ? [value, ...value] : [value];
    if (isMap(value) && Object.hasOwn(value, parts[0])) return candidates(value[parts[0]], parts.slice(1));
    if (!isList(value)) return [undefined];
    const inner = value.filter(isMap).flatMap((entry) => candidates(entry, parts));
    const index = /^\d+$/.test(parts[0]) ? Number(parts[0]) : -1;
    if (!(index in value)) return inner;
    return [...inner, ...(parts.length > 1 ? candidates(value[index], parts.slice(1)) : [value[index]])];
  }

  function same(value, given) {
    if (value === undefined || value === null) return given === null;
    if (isList(value) && isList(given)) {
      return value.length === given.length && value.every((one, i) => same(one, given[i]));
    }
    return Object.is(value, given) || value === given;
  }

  function ordered(sign, value, given) {
    if (given === null) return sign.length === 2 && (value === null || value === undefined);
    if (typeof value !== typeof given || typeof value === "object" || value === undefined) return false;
    if (Number.isNaN(value) && Number.isNaN(given)) return sign.length === 2;
    return { "<": value < given, ">": value > given, "<=": value <= given, ">=": value >= given }[sign];
  }

  // A term has `fields`, `value(run)`, and as a field `path` and `all(run)`, as a constant `constant`.
  const constant = (value) => ({ fields: [], constant: value, value: () => value });
  const term = (node) => (node.holds ? fail("a condition is not expected here") : node);

  function condition(node) {
    if (node.holds) return node.holds;
    if (!node.path) fail("a comparison such as config.lr > 0.1 is expected");
    const empty = [undefined, null, false, 0, ""];
    return (run) => !node.all(run).some((value) => empty.includes(value));
  }

  const number = (value) => (typeof value === "number" && !Number.isNaN(value) ? value : null);
  function computed(operation, ...sides) {
    const fields = sides.flatMap((side) => side.fields);
    // Times are milliseconds here, and computed with in seconds.
    const scales = sides.map((side) => (times.includes(side.path?.[0]) ? 1000 : 1));
    const shifted = sides.length === 2 && sides.filter((side) => side.shifted).length === 1;
    const value = (run) => {
      const values = sides.map((side) => number(side.value(run)));
      if (values.includes(null)) return null;
      const result = operation(...values.map((one, i) => one / scales[i]));
      return Number.isFinite(result) ? result * (shifted ? 1000 : 1) : null;
    };
    return fields.length ? { fields, shifted, value } : constant(value());
  }

  function compared(left, sign, right) {
    if (sign === "in" || sign === "not") {
      const [field, given] = right.path ? [right, [left.constant]] : [left, right.constant];
      if (!field.path || !isList(given)) fail("a list must follow `in`");
      return (run) => given.some((one) => field.all(run).some((v) => same(v, one))) === (sign === "in");
    }
    if (!left.fields.length && !right.fields.length) fail("one side must be a field");
    if (!left.fields.length) return compared(right, MIRRORED[sign] ?? sign, left);
    const equality = sign === "==" || sign === "!=";
    const dated = [...left.fields, ...right.fields].some((one) => times.includes(one));
    const read = (side) => (dated && typeof side.constant === "string" ? moment(side.constant) : side.constant);
    if (left.path && !right.fields.length) {
      const timed = left.path[0] === "duration" && typeof right.constant === "string";
      const start = dated && equality && typeof right.constant === "string" ? day(right.constant) : null;
      const next = start && new Date(start.getFullYear(), start.getMonth(), start.getDate() + 1);
      const given = timed ? length(right.constant) : start ?? read(right);
      const test = start ? (value) => value >= start && value < next
        : equality ? (value) => same(value, given) : (value) => ordered(sign, value, given);
      return (run) => left.all(run).some(test) !== (sign === "!=");
    }
    const [one, other] = [left, right].map((side) => (side.fields.length ? side.value : () => read(side)));
    return (run) => {
      const [a, b] = [one(run) ?? null, other(run) ?? null];
      if (equality) return sign === "!=" ? !same(a, b) : a !== null && same(a, b);
      return a !== null && b !== null && typeof a !== "boolean" && ordered(sign, a, b);
    };
  }

  // Reads what binds more tightly than the signs of a level: the parser of Pratt.
  function parse(text) {
    const list = tokens(text);
    let at = 0;
    let series = false;
    const take = (sign) => list[at]?.sign === sign && ++at > 0;
    const expect = (sign) => take(sign) || fail(`${sign} is missing`);

    function expression(level) {
      let left = first();
      for (;;) {
        const sign = list[at]?.sign;
        const own = LEVELS.get(sign) ?? 0;
        if (own <= level) return left;
        if (own === 4) left = chain(term(left));
        else {
          at += 1;
          const [one, other] = [left, expression(sign === "**" ? 7 : own)];
          if (own > 4) left = computed(ARITHMETIC[sign], term(one), term(other));
          else {
            const parts = [condition(one), condition(other)];
            left = { holds: (run) => (own === 2 ? parts.every((p) => p(run)) : parts.some((p) => p(run))) };
          }
        }
      }
    }

    function chain(left) {
      const conditions = [];
      for (let one = left; COMPARISONS.includes(list[at]?.sign);) {
        const { sign } = list[at++];
        if (sign === "not") expect("in");
        const other = term(expression(4));
        conditions.push(compared(one, sign, other));
        one = other;
      }
      return { holds: (run) => conditions.every((holds) => holds(run)) };
    }

    function first() {
      const token = list[at++] ?? fail("the expression is not complete");
      const { name, sign } = token;
      if (sign === undefined) return constant(token.constant);
      if (sign === "-") return computed((value) => -value, term(expression(7)));
      if (sign === "+") return term(expression(7));
      if (sign === "(" || sign === "[") {
        const closing = sign === "(" ? ")" : "]";
        const entries = [];
        let commas = 0;
        while (list[at] && list[at].sign !== closing) {
          entries.push(expression(0));
          if (!take(",")) break;
          commas += 1;
        }
        expect(closing);
        return sign === "(" && !commas && entries.length === 1 ? entries[0]
          : constant(entries.map((entry) => entry.constant));
      }
      if (name === undefined) fail(`${sign} is not expected`);
      if (name === "not") {
        const inner = condition(expression(3));
        return { holds: (run) => !inner(run) };
      }
      if (Object.hasOwn(WORDS, name.toLowerCase())) return constant(WORDS[name.toLowerCase()]);
      if (list[at]?.sign !== "(") return field(name);
      at += 1;
      if (name !== "abs") return functions.includes(name) ? call(name) : fail(`there is no function ${name}`);
      const inner = term(expression(0));
      expect(")");
      return computed(Math.abs, inner);
    }

    function call(name) {
      series = name === "exists";
      const target = expression(0);
      series = false;
      if (!target.path) fail(`${name} takes a field`);
      const given = name === "exists" ? "" : expect(",") && expression(0).constant;
      if (typeof given !== "string") fail(`${name} takes text in quotes`);
      expect(")");
      const pattern = name === "matches" ? new RegExp(given, "u") : null;
      const test = { exists: (value) => value !== undefined, matches: (value) => pattern.test(value),
        contains: (value) => value.includes(given), startswith: (value) => value.startsWith(given) }[name];
      const kind = (value) => name === "exists" || typeof value === "string";
      return { holds: (run) => target.all(run).some((value) => kind(value) && test(value)) };
    }

    function field(root) {
      if (!Object.hasOwn(known, root)) fail(`there is no field ${root}`);
      const parts = [];
      for (;;) {
        if (take(".")) parts.push(list[at++]?.name ?? fail("a name must follow the dot"));
        else if (take("[")) {
          parts.push(String(expression(0).constant));
          expect("]");
        } else break;
      }
      if (parts.length && !known[root]) fail(`${root} has no parts`);
      const path = [root, ...(root === "metrics" ? metric(parts) : parts)];
      const all = (run) => candidates(run.record, path);
      return { fields: [root], path, all, shifted: times.includes(root), value: (run) => all(run)[0] };
    }

    function metric(parts) {
      const name = (count) => parts.slice(0, count).join(".");
      if (parts.length > 2 && parts.at(-2) === "at") return [name(-2), "at", parts.at(-1)];
      if (parts.length > 1 && statistics.includes(parts.at(-1))) return [name(-1), parts.at(-1)];
      if (series) return parts.length ? [name()] : [];
      return fail(`a metric has many values: write metrics.${name()}.last, .min or .max`);
    }

    const found = condition(expression(0));
    return at < list.length ? fail(`${list[at].sign ?? list[at].constant} is not expected`) : found;
  }

  // JSON has neither NaN nor infinity.
  function revive(value) {
    if (isList(value)) return value.map(revive);
    if (!isMap(value)) return value;
    if (Object.hasOwn(value, "(number)")) {
      return { nan: NaN, inf: Infinity, "-inf": -Infinity }[value["(number)"]];
    }
    return Object.fromEntries(Object.entries(value).map(([key, one]) => [key, revive(one)]));
  }

  return { parse, revive };
};
