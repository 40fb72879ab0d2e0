// Columns and trees of text, for terminals.

/// Rows of cells in columns of equal width, two blanks between them.
package struct TextTable {
    package enum Alignment: Sendable { case left, right }

    private let alignments: [Alignment]
    private var rows: [[String]] = []
    private let hasHeader: Bool

    /// A table with a row of titles.
    ///
    /// A title that ends with `>` stands for a column that is aligned to the right.
    package init(_ titles: String...) {
        alignments = titles.map { $0.hasSuffix(">") ? .right : .left }
        rows = [titles.map { $0.hasSuffix(">") ? String($0.dropLast()) : $0 }]
        hasHeader = true
    }

    /// A table without titles, all columns to the left.
    package init() {
        alignments = []
        hasHeader = false
    }

    package mutating func append(_ cells: String...) { rows.append(cells) }
    package mutating func append(row cells: [String]) { rows.append(cells) }

    /// Whether there is no row beside the titles.
    package var isEmpty: Bool { rows.count == (hasHeader ? 1 : 0) }

    /// A line for each row, without blanks at their ends.
    package var lines: [String] {
        let columnCount = rows.map(\.count).max() ?? 0
        let widths = (0..<columnCount).map { column in
            rows.map { column < $0.count ? $0[column].count : 0 }.max() ?? 0
        }
        return rows.map { row in
            let cells = row.enumerated().map { column, cell in
                pad(cell, to: widths[column], column < alignments.count ? alignments[column] : .left)
            }
            return trimmed(cells.joined(separator: "  "))
        }
    }

    /// All lines, each with its newline.
    package var text: String { lines.map { $0 + "\n" }.joined() }

    private func pad(_ cell: String, to width: Int, _ alignment: Alignment) -> String {
        let blanks = String(repeating: " ", count: max(0, width - cell.count))
        return alignment == .left ? cell + blanks : blanks + cell
    }

    private func trimmed(_ line: String) -> String {
        String(line.prefix(line.count - line.reversed().prefix { $0 == " " }.count))
    }
}

/// A line and what hangs below it.
package struct TextTree {
    package var line: String
    package var children: [TextTree]

    package init(_ line: String, _ children: [TextTree] = []) {
        self.line = line
        self.children = children
    }

    /// A line whose children have none of their own: the lines of a table, say.
    package init(_ line: String, lines: [String]) {
        self.init(line, lines.map { TextTree($0) })
    }

    /// The tree, each line with its newline.
    package var text: String {
        var text = line + "\n"
        appendChildren(to: &text, indent: "")
        return text
    }

    private func appendChildren(to text: inout String, indent: String) {
        for (place, child) in children.enumerated() {
            let isLast = place == children.count - 1
            text += indent + (isLast ? "└─ " : "├─ ") + child.line + "\n"
            child.appendChildren(to: &text, indent: indent + (isLast ? "   " : "│  "))
        }
    }
}
