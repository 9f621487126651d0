"use strict";
// The query expressions of the command line, read and applied in the page.
const queryFilter = (() => {
  const ROOTS = new Set(["id", "uuid", "experiment", "command", "status", "config", "result", "info",
    "meta", "metrics", "host", "python", "cpu", "gpu", "pid", "start_time", "stop_time", "heartbeat",
    "duration", "commit", "dirty", "artifacts", "reason", "tags", "notes", "resumed_from",
    "comment"]);
  const DEEP = new Set(["config", "result", "info", "meta", "metrics"]);
  const TIMES = new Set(["start_time", "stop_time", "heartbeat"]);
  const STATISTICS = new Set(["last", "min", "max", "count", "step", "min_step", "max_step"]);
  const WORDS = { true: true, false: false, null: null, none: null, nan: NaN };
  const FUNCTIONS = { exists: 1, matches: 2, contains: 2, startswith: 2 };
  const DAYS = ["sunday", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday"];
  const SECONDS = { s: 1, m: 60, h: 3600, d: 86400, w: 604800 };
  const UNIT = "(\\d+(?:\\.\\d+)?)\\s*(seconds?|sec|s|minutes?|min|m|hours?|h|days?|d|weeks?|w)";

  function tokens(text) {
    const pattern = /\s*(?:(\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?)|([A-Za-z_]\w*)|("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')|(\*\*|==|!=|<=|>=|[-+*/%<>()[\].,]))/y;
    const found = [];
    while (pattern.lastIndex < text.trimEnd().length) {
      const at = pattern.lastIndex;
      const match = pattern.exec(text);
      if (!match) throw new Error(`not understood: ${text.slice(at).trim()}`);
      const [, number, name, quoted, sign] = match;
      if (number !== undefined) found.push({ kind: "constant", value: Number(number) });
      else if (quoted !== undefined) {
        found.push({ kind: "constant", value: quoted.slice(1, -1).replace(/\\(.)/g, "$1") });
      } else found.push({ kind: name === undefined ? "sign" : "name", value: name ?? sign });
    }
    return found;
  }

  function midnight(days) {
    const now = new Date();
    return new Date(now.getFullYear(), now.getMonth(), now.getDate() - days);
  }

  function day(text) {
    const words = text.trim().toLowerCase();
    if (words === "today" || words === "yesterday") return midnight(words === "today" ? 0 : 1);
    const weekday = DAYS.indexOf(words.replace(/^last/, "").trim());
    if (weekday >= 0) return midnight(((new Date().getDay() - weekday - 1 + 7) % 7) + 1);
    const date = /^(\d{4})-(\d\d)-(\d\d)$/.exec(words);
    return date ? new Date(Number(date[1]), Number(date[2]) - 1, Number(date[3])) : null;
  }

  function moment(text) {
    const ago = new RegExp(`^${UNIT}(?:\\s+ago)?$`).exec(text.trim());
    if (ago) return Date.now() - 1000 * Number(ago[1]) * SECONDS[ago[2][0]];
    const found = day(text) ?? new Date(text.trim().replace(" ", "T"));
    if (Number.isNaN(found.getTime())) throw new Error(`not a time: '${text}'`);
    return found.getTime();
  }

  function length(text) {
    const part = new RegExp(`${UNIT}(?![a-z])`, "g");
    const given = text.trim().toLowerCase();
    const parts = [...given.matchAll(part)];
    if (!parts.length || given.replace(part, "").replace(/[ ,]/g, "")) {
      throw new Error(`not a duration: '${text}'`);
    }
    return parts.reduce((sum, one) => sum + Number(one[1]) * SECONDS[one[2][0]], 0);
  }

  const isList = Array.isArray;
  const isMap = (value) => value !== null && typeof value === "object" && !isList(value);

  // All values that a condition on a path is held against; in lists, every entry too.
  function candidates(value, parts) {
    if (!parts.length) return isList(value) ? [value, ...value] : [value];
    if (isMap(value)) {
      return Object.hasOwn(value, parts[0]) ? candidates(value[parts[0]], parts.slice(1)) : [undefined];
    }
    if (isList(value)) {
      const inner = value.filter(isMap).flatMap((entry) => candidates(entry, parts));
      const index = /^\d+$/.test(parts[0]) ? Number(parts[0]) : -1;
      return index in value ? [...inner, ...candidates(value[index], parts.slice(1))] : inner;
    }
    return [undefined];
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
    return { "<": value < given, ">": value > given, "<=": value <= given, ">=": value >= given }[sign];
  }

  function compare(sign, found, given) {
    if (sign === "==") return found.some((value) => same(value, given));
    if (sign === "!=") return !found.some((value) => same(value, given));
    return found.some((value) => ordered(sign, value, given));
  }

  function parser(text) {
    const list = tokens(text);
    let at = 0;
    const peek = (value) => at < list.length && list[at].kind !== "constant" && list[at].value === value;
    const take = (value) => peek(value) && ++at > 0;
    function expect(value) {
      if (!take(value)) throw new Error(`${value} is missing`);
    }

    function either() {
      const parts = [both()];
      while (take("or")) parts.push(both());
      return (run) => parts.some((part) => part(run));
    }

    function both() {
      const parts = [negation()];
      while (take("and")) parts.push(negation());
      return (run) => parts.every((part) => part(run));
    }

    function negation() {
      if (!take("not")) return comparison();
      const inner = negation();
      return (run) => !inner(run);
    }

    function comparison() {
      const start = at;
      // A bracket may hold a condition or a number: what follows it tells.
      if (take("(")) {
        try {
          const inner = either();
          expect(")");
          if (!list[at] || peek("and") || peek("or") || peek(")")) return inner;
        } catch { /* It is read as a number below. */ }
        at = start;
      }
      const name = list[at]?.value;
      if (list[at]?.kind === "name" && list[at + 1]?.value === "(" && Object.hasOwn(FUNCTIONS, name)) {
        return call(name);
      }
      let left = sum();
      const conditions = [];
      for (;;) {
        const negated = peek("not");
        const sign = negated ? "not" : ["==", "!=", "<", "<=", ">", ">=", "in"].find(peek);
        if (!sign) break;
        at += negated ? 2 : 1;
        const right = sum();
        conditions.push(sign === "in" || negated ? member(left, right, negated) : pair(left, sign, right));
        left = right;
      }
      if (conditions.length) return (run) => conditions.every((one) => one(run));
      if (!left.path) throw new Error("a comparison such as config.lr > 0.1 is expected");
      const empty = [undefined, null, false, 0, ""];
      return (run) => !left.all(run).some((value) => empty.includes(value));
    }

    function pair(left, sign, right) {
      if (!left.fields.length && !right.fields.length) throw new Error("one side must be a field");
      const mirrored = { "<": ">", ">": "<", "<=": ">=", ">=": "<=" };
      if (!left.fields.length) return pair(right, mirrored[sign] ?? sign, left);
      if (!right.fields.length && left.path) {
        const given = right.constant;
        const dated = TIMES.has(left.path[0]) && typeof given === "string";
        const whole = dated && (sign === "==" || sign === "!=") ? day(given) : null;
        if (whole) {
          const next = new Date(whole.getFullYear(), whole.getMonth(), whole.getDate() + 1);
          return (run) => left.all(run).some((v) => v >= whole.getTime() && v < next.getTime())
            === (sign === "==");
        }
        const value = dated ? moment(given)
          : left.path[0] === "duration" && typeof given === "string" ? length(given) : given;
        return (run) => compare(sign, left.all(run), value);
      }
      const dated = [...left.fields, ...right.fields].some((one) => TIMES.has(one));
      const read = (side) => (dated && typeof side.constant === "string"
        ? () => moment(side.constant) : side.value);
      const [one, other] = [read(left), read(right)];
      return (run) => {
        const [a, b] = [one(run) ?? null, other(run) ?? null];
        if (sign === "==") return a !== null && same(a, b);
        if (sign === "!=") return !same(a, b);
        return a !== null && b !== null && typeof a !== "boolean" && ordered(sign, a, b);
      };
    }

    function member(left, right, negated) {
      if (right.path) {
        return (run) => right.all(run).some((value) => same(value, left.constant)) !== negated;
      }
      if (!left.path || !isList(right.constant)) throw new Error("a list must follow `in`");
      return (run) => right.constant.some((given) => compare("==", left.all(run), given)) !== negated;
    }

    function call(name) {
      at += 2;
      const field = sum(name === "exists");
      if (!field.path) throw new Error(`${name} takes a field`);
      let text = "";
      if (FUNCTIONS[name] === 2) {
        expect(",");
        text = sum().constant;
        if (typeof text !== "string") throw new Error(`${name} takes text in quotes`);
      }
      expect(")");
      if (name === "exists") return (run) => field.all(run).some((value) => value !== undefined);
      const pattern = name === "matches" ? new RegExp(text, "u") : null;
      const holds = pattern ? (value) => pattern.test(value)
        : name === "contains" ? (value) => value.includes(text) : (value) => value.startsWith(text);
      return (run) => field.all(run).some((value) => typeof value === "string" && holds(value));
    }

    const number = (value) => (typeof value === "number" && !Number.isNaN(value) ? value : null);
    function computed(operation, ...sides) {
      const fields = sides.flatMap((side) => side.fields);
      // Times are milliseconds here, and computed with in seconds.
      const scaled = (side) => (run) => number(side.value(run)) / (TIMES.has(side.path?.[0]) ? 1000 : 1);
      const readers = sides.map((side) => ({ side, read: scaled(side) }));
      const value = (run) => {
        if (readers.some(({ side }) => number(side.value(run)) === null)) return null;
        const result = operation(...readers.map(({ read }) => read(run)));
        return number(result) === null || !Number.isFinite(result) ? null : result;
      };
      const shifted = sides.length === 2 && sides.filter((side) => side.shifted).length === 1;
      const made = { fields, value: shifted ? (run) => (value(run) === null ? null : 1000 * value(run)) : value };
      return fields.length ? { ...made, shifted } : { ...made, constant: value() };
    }

    function sum(series = false) {
      let left = product(series);
      while (peek("+") || peek("-")) {
        const sign = list[at++].value;
        left = computed(sign === "+" ? (a, b) => a + b : (a, b) => a - b, left, product());
      }
      return left;
    }

    function product(series) {
      let left = unary(series);
      while (peek("*") || peek("/") || peek("%")) {
        const sign = list[at++].value;
        const operations = { "*": (a, b) => a * b, "/": (a, b) => a / b,
          "%": (a, b) => a - b * Math.floor(a / b) };
        left = computed(operations[sign], left, unary());
      }
      return left;
    }

    function unary(series) {
      if (take("-")) return computed((value) => -value, unary());
      if (take("+")) return unary();
      const base = primary(series);
      return take("**") ? computed((a, b) => a ** b, base, unary()) : base;
    }

    function primary(series) {
      const token = list[at++];
      if (!token) throw new Error("the expression is not complete");
      if (token.kind === "constant") {
        const next = list[at];
        if (typeof token.value === "string" && next?.kind === "constant" && typeof next.value === "string") {
          list[at] = { kind: "constant", value: token.value + next.value };
          return primary(series);
        }
        return constant(token.value);
      }
      if (token.value === "[" || token.value === "(") {
        const closing = token.value === "[" ? "]" : ")";
        const entries = [];
        let commas = 0;
        while (!peek(closing)) {
          entries.push(sum());
          if (take(",")) commas += 1; else break;
        }
        expect(closing);
        if (closing === ")" && !commas && entries.length === 1) return entries[0];
        return constant(entries.map((entry) => entry.constant));
      }
      if (token.kind !== "name") throw new Error(`${token.value} is not expected`);
      const word = token.value.toLowerCase();
      if (Object.hasOwn(WORDS, word)) return constant(WORDS[word]);
      if (token.value === "abs" && take("(")) {
        const inner = sum();
        expect(")");
        return computed(Math.abs, inner);
      }
      return field(token.value, series);
    }

    function constant(value) {
      return { fields: [], constant: value, value: () => value };
    }

    function field(root, series) {
      if (!ROOTS.has(root)) throw new Error(`there is no field ${root}`);
      const parts = [];
      while (peek(".") || peek("[")) {
        if (take(".")) parts.push(list[at++]?.value);
        else {
          at += 1;
          const key = sum().constant;
          expect("]");
          parts.push(String(key));
        }
      }
      if (parts.length && !DEEP.has(root)) throw new Error(`${root} has no parts`);
      const path = root === "metrics" ? ["metrics", ...metric(parts, series)] : [root, ...parts];
      const all = (run) => candidates(run.record, path);
      return { fields: [root], path, all, shifted: TIMES.has(root),
        value: (run) => all(run)[0] };
    }

    function metric(parts, series) {
      const count = parts.length;
      if (count > 2 && parts[count - 2] === "at") {
        return [parts.slice(0, -2).join("."), "at", parts[count - 1]];
      }
      if (count > 1 && STATISTICS.has(parts[count - 1])) {
        return [parts.slice(0, -1).join("."), parts[count - 1]];
      }
      if (series) return count ? [parts.join(".")] : [];
      throw new Error(`a metric has many values: write metrics.${parts.join(".")}.last, .min or .max`);
    }

    const found = either();
    if (at < list.length) throw new Error(`${list[at].value} is not expected`);
    return found;
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

  return { parse: parser, revive };
})();
