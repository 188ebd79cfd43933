"""Where data comes from: folders, tables, tars, arrays and the Hub become `RawTable`s."""
